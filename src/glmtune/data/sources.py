"""Files, folders and hub ids -> rows, one at a time, so that memory stays flat.

    train.json            an array of objects, objects one after the other, or {"data": [...]}
    train.jsonl           one object per line (also .ndjson)
    train.csv  train.tsv  a header line, then one row per record
    train.parquet         read batch by batch
    train.txt             one row {"text": line} per line that is not blank
    train.json.gz         .gz and .zst of all of these
    data/                 the files of a split below the folder, sorted by path; see `splits`
    saved/                a folder written by `datasets.save_to_disk`
    owner/name            a data set on the Hugging Face Hub
    modelscope://owner/name   one on ModelScope, as is every id when USE_MODELSCOPE_HUB is set
    dataset_info.json#name    an entry of LLaMA-Factory's register
    train.json#500        the first 500 rows of any of these

What cannot be read is named by file and line. A bad row is passed to `on_bad`, and reading
continues after it. A file that cannot be used at all raises an error: too many rows would be
missing without notice.
"""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from glmtune.data.dataset_info import is_register, registered
from glmtune.data.folders import data_files, missing, refuse_special
from glmtune.data.hubs import MODELSCOPE, find_on_hub, find_saved, is_saved
from glmtune.data.json_rows import (
    lists_beside_data,
    read_json,
    read_rows_under,
    split_names,
)
from glmtune.data.rows import OnBad, Row, raise_bad_row
from glmtune.data.splits import choose_split, find_splits
from glmtune.data.table_rows import read_csv, read_parquet, read_text, read_tsv
from glmtune.data.text_files import ENDINGS, ending_of
from glmtune.errors import DataError, some
from glmtune.recipe.sources import SourceSection

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CAP = re.compile(r"(.+)#([1-9][0-9]*)", re.DOTALL)

AnySource = str | Path | SourceSection


@dataclass(frozen=True, slots=True)
class Source:
    """A file, folder or hub data set that was found; `read_rows` reads one.

    Attributes:
        name: as the user gave it, without `#500`.
        files: every file that the rows come from; their contents identify the rows.
        left_out: the splits and files that are not read, as a sentence; "" if there are none.
        max_rows: the 500 of `path#500`.
        own: the keys that the source has for itself.
    """

    name: str
    files: tuple[Path, ...]
    _read: Callable[[OnBad], Iterator[Row]]
    left_out: str = ""
    max_rows: int | None = None
    own: SourceSection | None = None

    def rows(self, on_bad: OnBad | None = None) -> Iterator[Row]:
        """Read the rows, as `read_rows` does."""
        return itertools.islice(self._read(on_bad or raise_bad_row), self.max_rows)


def read_rows(
    source: AnySource, *, split: str | None = None, on_bad: OnBad | None = None
) -> Iterator[Row]:
    """Read the rows of a file, a folder or a hub id, in order.

    Args:
        source: see the module's docstring.
        split: for sources that have splits; "train" if not given.
        on_bad: called with every row that cannot be read. Without it the first one raises.

    Raises:
        DataError: nothing can be read there (at once), or a file is damaged (while reading).
        RowError: a row cannot be read, and there is no `on_bad`.
    """
    return find_source(source, split=split).rows(on_bad)


def find_sources(
    sources: AnySource | Sequence[AnySource], *, split: str | None = None, streaming: bool = False
) -> list[Source]:
    """Find one source, or several, before any of them is read.

    Args:
        sources, split, streaming: as for `find_source`.

    Raises:
        DataError: as `find_source`.
    """
    if isinstance(sources, AnySource):
        sources = [sources]
    return [find_source(source, split=split, streaming=streaming) for source in sources]


def first_rows_of(sources: Sequence[Source], number: int) -> list[Source]:
    """Cap each source at its first rows, and say so where it had no such cap."""
    capped = []
    for source in sources:
        if source.max_rows is not None and source.max_rows <= number:
            capped.append(source)
            continue
        said = f"{source.name}: the first {number:,} rows are checked"
        left_out = "; ".join(filter(None, (source.left_out, said)))
        capped.append(replace(source, max_rows=number, left_out=left_out))
    return capped


def find_source(source: AnySource, *, split: str | None = None, streaming: bool = False) -> Source:
    """Resolve a path or hub id. For a path that exists, the network is never used.

    Args:
        source: see the module's docstring.
        split: for sources that have splits, and do not name their own.
        streaming: whether a data set of a hub is read from there, and not downloaded first.

    Raises:
        DataError: it does not exist, holds no data, or lacks the split.
    """
    own = source if isinstance(source, SourceSection) else None
    name = own.path if own else os.fspath(source)  # type: ignore[arg-type]
    try:
        if is_register(name):
            own = registered(own or SourceSection(path=name))
            name = own.path
        split = (own.split if own else None) or split
        name, max_rows = _without_cap(name)
        found = _find(name, split, own.config if own else None, streaming=streaming)
    except OSError as error:  # a name that is too long, a closed folder, ...
        why = error.strerror or error
        raise DataError(f"{_shown(name)}: cannot be read: {why}. Check the path.") from error
    return replace(found, max_rows=max_rows, own=own)


def _shown(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def _find(name: str, split: str | None, config: str | None, *, streaming: bool) -> Source:
    """Find a source by its name.

    Raises:
        DataError: as `find_source`.
        OSError: the path cannot be looked up.
    """
    if not name:
        raise DataError("the path of a data file is empty. Name a file, a folder or a hub id.")
    if "\0" in name:
        raise DataError(f"{name!r}: a path cannot have a null character. Correct it.")
    path = _expanded(name)
    if path.is_dir() and not is_saved(path):
        return _find_in_folder(name, path, split, config)
    if path.exists() and config is not None:
        raise DataError(
            f"{name}: config {config!r} was asked for, but only data sets of a hub, and folders "
            "with a README.md like theirs, have configurations. Leave it out."
        )
    if path.is_dir():
        return Source(name, *find_saved(name, path, split))
    if path.exists():
        refuse_special(path, name)
        return _find_file(name, path, split)
    may_be_id = HUB_ID.fullmatch(name) is not None
    is_id = may_be_id and not path.parent.exists()
    if name.startswith(MODELSCOPE) or is_id:
        return Source(name, *find_on_hub(name, split, config, streaming=streaming))
    raise missing(name, path, may_be_id=may_be_id)


def _without_cap(name: str) -> tuple[str, int | None]:
    """Split `rows.json#500` into the path and the number; None if there is a file of that name."""
    capped = _CAP.fullmatch(name)
    if capped is None or os.path.lexists(_expanded(name)):
        return name, None
    # More digits than these are more rows than any file has.
    return capped[1], min(int(capped[2][:19]), sys.maxsize)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~nobody
        return Path(name)


def _find_file(name: str, path: Path, split: str | None) -> Source:
    """Find the rows of a file, or of one split of a JSON file that has them."""
    reader = _reader(path, name)
    splits = split_names(path, name)
    if splits:
        chosen = choose_split(name, list(splits), split)
        others = [each for each in splits if each != chosen]
        left_out = f"{name}: split {chosen} is read; left out: {', '.join(others)}"
        read = partial(read_rows_under, chosen, path, name)
        return Source(name, (path,), read, left_out if others else "")
    if split is not None:
        raise DataError(
            f"{name}: split {split!r} was asked for, but plain files have no splits. Name the file "
            "of that split, or give the split to the source that has it alone: "
            f"data.train: [{{path: ..., split: {split}}}]."
        )
    return Source(name, (path,), reader, _beside_data(path, name))


def _beside_data(path: Path, name: str) -> str:
    """Say which rows of a JSON file are not read; "" if there are none."""
    lists = lists_beside_data(path, name)
    return f"{name}: the rows under 'data' are read; left out: {', '.join(lists)}" if lists else ""


def _find_in_folder(name: str, folder: Path, split: str | None, config: str | None) -> Source:
    """Find the files of one split of a folder."""
    found = find_splits(name, folder, data_files(name, folder), config)
    # A folder without splits is one, and has every file.
    chosen = choose_split(name, list(found.splits), split, found.others)
    files = found.splits[chosen]
    names = [str(Path(name) / file.relative_to(folder)) for file in files]
    others = [
        f"{other} ({len(held)} file{'s' * (len(held) > 1)})"
        for other, held in found.splits.items()
        if other != chosen
    ]
    if found.others:
        others.append(f"in no split: {some([str(f.relative_to(folder)) for f in found.others])}")
    left_out = f"{name}: split {chosen} is read, {len(files)} file{'s' * (len(files) > 1)}"
    readers = [_reader(file, file_name) for file, file_name in zip(files, names, strict=True)]

    def read(on_bad: OnBad) -> Iterator[Row]:
        return itertools.chain.from_iterable(reader(on_bad) for reader in readers)

    left_out = f"{left_out}; left out: {', '.join(others)}" if others else ""
    beside = (_beside_data(file, file_name) for file, file_name in zip(files, names, strict=True))
    return Source(name, files, read, "; ".join(filter(None, (left_out, *beside))))


def _reader(path: Path, name: str) -> Callable[[OnBad], Iterator[Row]]:
    kind, _ = ending_of(path)
    if not kind:
        raise DataError(
            f"{name}: the ending {path.suffix!r} is not known, expected one of "
            f"{', '.join(ENDINGS)}, each optionally followed by .gz or .zst. "
            "Convert the file, or rename it if its name is wrong."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty. Write it again, or leave it out.")
    return lambda on_bad: _READERS[kind](path, name, on_bad)


_READERS: dict[str, Callable[[Path, str, OnBad], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
