"""Which packages `make newest` upgrades, and which of them are then outside of our ranges.

python -m tests.newest names      names of all dependencies, and of the extras of tests
python -m tests.newest outside    those whose installed release our range excludes
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
APART = "torch"  # installed before the others, since its CPU build has an index of its own


def requirements(project: Path = PROJECT) -> Iterator[Requirement]:
    """Yield what the package needs, and what its tests do, with the extras that they name."""
    section = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = section["optional-dependencies"]
    waiting = [*section["dependencies"], *extras["dev"]]
    while waiting:
        each = Requirement(waiting.pop(0))
        if each.name == section["name"]:
            waiting += [line for extra in sorted(each.extras) for line in extras[extra]]
        else:
            yield each


def outside(project: Path = PROJECT) -> Iterator[str]:
    """Yield the installed releases that a range of ours excludes, as a line each."""
    for each in requirements(project):
        try:
            installed = version(each.name)
        except PackageNotFoundError:
            continue  # for another system
        if not each.specifier.contains(installed, prereleases=True):
            yield f"{each.name} {installed} is outside of {each.specifier}"


def main() -> None:
    if sys.argv[1:] == ["names"]:
        print(*sorted({each.name for each in requirements()} - {APART}))
    elif sys.argv[1:] == ["outside"]:
        print("\n".join(outside()) or "every newest release is within our ranges")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
