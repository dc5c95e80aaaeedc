"""Whether the files that rows were read from are still as they were when the run began.

A run learns the rows that it read at its start, and a file that changes or vanishes meanwhile does
it no harm. But that file then shows other rows than those that were learned.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

Stamps = Mapping[str, tuple[int, int]]
"""The size and the time of change of each file, by its path."""


def stamp(sources: Iterable[str]) -> Stamps:
    """Record the local files of some sources; data sets of a hub have none here."""
    files: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if not path.exists():
            path = Path(source.partition("#")[0] or source).expanduser()  # of `rows.json#500`
        files += path.rglob("*") if path.is_dir() else [path]
    stats = {str(file): file.stat() for file in files if file.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def changed_since(stamps: Stamps) -> list[str]:
    """List the files that have changed, or are gone."""
    return [name for name, before in stamps.items() if stamp([name]).get(name) != before]
