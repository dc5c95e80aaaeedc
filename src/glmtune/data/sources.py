"""Files, folders and hub ids -> rows, one at a time, so that memory stays flat.

    train.json            an array of objects, objects one after the other, or {"data": [...]}
    train.jsonl           one object per line (also .ndjson)
    train.csv  train.tsv  a header line, then one row per record
    train.parquet         read batch by batch
    train.txt             one row {"text": line} per line that is not blank
    train.json.gz         .gz and .zst of all of these
    data/                 every such file below the folder, sorted by path
    saved/                a folder written by `datasets.save_to_disk`
    owner/name            a data set on the Hugging Face Hub
    modelscope://owner/name   one on ModelScope, as is every id when USE_MODELSCOPE_HUB is set
    train.json#500        the first 500 rows of any of these

What cannot be read is named by file and line. A bad row is passed to `on_bad`, and reading
continues after it. A file that cannot be used at all raises an error: too many rows would be
missing without notice.
"""

import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from glmtune.data.json_rows import read_json
from glmtune.data.rows import OnBad, Row, raise_bad_row
from glmtune.data.table_rows import (
    BATCH_ROWS,
    read_csv,
    read_parquet,
    read_text,
    read_tsv,
    without_nulls,
)
from glmtune.data.text_files import ENDINGS, ending_of
from glmtune.errors import DataError

MODELSCOPE = "modelscope://"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CAP = re.compile(r"(.+)#([1-9]\d*)")
_NOT_DATA = {"dataset_info.json", "dataset_infos.json"}  # describe data sets, hold no rows


@dataclass(frozen=True, slots=True)
class Source:
    """A file, folder or hub data set that was found; `read_rows` reads one.

    Attributes:
        name: as the user gave it, without `#500`.
        files: every file that the rows come from; their contents identify the rows.
        max_rows: the 500 of `path#500`.
    """

    name: str
    files: tuple[Path, ...]
    max_rows: int | None
    _read: Callable[[OnBad], Iterator[Row]]

    def rows(self, on_bad: OnBad | None = None) -> Iterator[Row]:
        """Read the rows, as `read_rows` does."""
        return itertools.islice(self._read(on_bad or raise_bad_row), self.max_rows)


def read_rows(
    source: str | Path, *, split: str | None = None, on_bad: OnBad | None = None
) -> Iterator[Row]:
    """Read the rows of a file, a folder or a hub id, in order.

    Args:
        source: see the module's docstring.
        split: for hub ids and `save_to_disk` folders, which have splits; "train" if not given.
        on_bad: called with every row that cannot be read. Without it the first one raises.

    Raises:
        DataError: nothing can be read there (at once), or a file is damaged (while reading).
        RowError: a row cannot be read, and there is no `on_bad`.
    """
    return find_source(source, split=split).rows(on_bad)


def find_sources(
    paths: str | Path | Sequence[str | Path], *, split: str | None = None
) -> list[Source]:
    """Find one source, or several, before any of them is read.

    Raises:
        DataError: as `find_source`.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    return [find_source(path, split=split) for path in paths]


def find_source(source: str | Path, *, split: str | None = None) -> Source:
    """Resolve a path or hub id. For a path that exists, the network is never used.

    Raises:
        DataError: it does not exist, holds no data, or lacks the split.
    """
    name, max_rows = os.fspath(source), None
    path = Path(name).expanduser()
    if not name:
        raise DataError("the path of a data file is empty. Name a file, a folder or a hub id.")
    if not path.exists() and (capped := _CAP.fullmatch(name)):
        name, max_rows = capped[1], int(capped[2])
        path = Path(name).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _find_saved(name, path, split, max_rows)
        files = _data_files(name, path)
        names = [str(Path(name) / file.relative_to(path)) for file in files]
    elif path.exists():
        files, names = [path], [name]
    elif name.startswith(MODELSCOPE) or (_HUB_ID.fullmatch(name) and not path.parent.exists()):
        return _find_on_hub(name, split, max_rows)
    else:
        _refuse_missing(name, path)
    if split is not None:
        raise DataError(
            f"{name}: split {split!r} was asked for, but plain files have no splits. "
            "Name the file of that split instead."
        )
    readers = [_reader(file, file_name) for file, file_name in zip(files, names, strict=True)]

    def read(on_bad: OnBad) -> Iterator[Row]:
        return itertools.chain.from_iterable(reader(on_bad) for reader in readers)

    return Source(name, tuple(files), max_rows, read)


def _reader(path: Path, name: str) -> Callable[[OnBad], Iterator[Row]]:
    kind, _ = ending_of(path)
    if not kind:
        raise DataError(
            f"{name}: the ending {path.suffix!r} is not known, expected one of "
            f"{', '.join(ENDINGS)}, each optionally followed by .gz or .zst. "
            "Convert the file, or rename it if its name is wrong."
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty. Write it again, or leave it out.")
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}.") from error
    return lambda on_bad: _READERS[kind](path, name, on_bad)


def _data_files(name: str, folder: Path) -> list[Path]:
    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(folder).parts)

    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_hidden(path)]
    files = [path for path in found if ending_of(path)[0] and path.name not in _NOT_DATA]
    if not files:
        held = ", ".join(path.name for path in found[:5]) or "nothing"
        raise DataError(
            f"{name}: this folder has no data file; it holds {held}"
            f"{', ...' if len(found) > 5 else ''}. Known endings: {', '.join(ENDINGS)}, "
            "also with .gz or .zst."
        )
    return files


def _refuse_missing(name: str, path: Path) -> NoReturn:
    """Raise an error for a missing file, with the name that may have been meant.

    Raises:
        DataError: always.
    """
    if path.is_symlink():
        raise DataError(f"{name}: a link to {str(path.readlink())!r}, which does not exist.")
    if not path.parent.is_dir():
        raise DataError(
            f"{name}: no such file, and no folder {str(path.parent)!r} either. "
            f"Paths are taken from the working folder, {Path.cwd()}."
        )
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    hint = f"Did you mean {str(path.with_name(near[0]))!r}?" if near else "Check the path."
    if _HUB_ID.fullmatch(name):
        hint += f" (If you mean a data set on a hub: the folder {path.parent} here hides it.)"
    raise DataError(f"{name}: no such file. {hint} (Working folder: {Path.cwd()})")


_READERS: dict[str, Callable[[Path, str, OnBad], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_text,
}


def _require_datasets(problem: str) -> None:
    if find_spec("datasets") is None:
        raise DataError(
            f"{problem} needs the package datasets, which is not installed. Run "
            "`pip install 'glmtune[datasets]'`, or give a JSON, CSV or Parquet file."
        )


def _find_saved(name: str, folder: Path, split: str | None, max_rows: int | None) -> Source:
    """Open a folder written by `save_to_disk`, of a Dataset or of a DatasetDict."""
    _require_datasets(f"{name}: is a `datasets.save_to_disk` folder, and reading it")
    import datasets

    if (folder / "dataset_dict.json").exists():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        folder /= _choose_split(name, splits, split)
    elif split is not None:
        raise DataError(f"{name}: split {split!r} was asked for, but this data set has no splits.")
    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{name}: looks like a `datasets.save_to_disk` folder, but cannot be loaded: {error}. "
            "Save it again."
        ) from error
    files = tuple(path for path in sorted(folder.rglob("*")) if path.is_file())
    return Source(name, files, max_rows, lambda _: _dataset_rows(data, name))


def _choose_split(name: str, splits: list[str], split: str | None) -> str:
    chosen = split or (splits[0] if len(splits) == 1 else "train")
    if chosen not in splits:
        raise DataError(
            f"{name}: there is no split {chosen!r}; it has {', '.join(splits) or 'none'}. "
            "Choose one with data.split."
        )
    return chosen


def _find_on_hub(name: str, split: str | None, max_rows: int | None) -> Source:
    _require_datasets(
        f"{name}: there is no such file or folder (working folder: {Path.cwd()}), and reading it "
        "from a hub"
    )
    import datasets

    owner_and_name = name.removeprefix(MODELSCOPE)
    wanted = os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes", "y")
    on_modelscope = wanted or name != owner_and_name
    hub = "ModelScope" if on_modelscope else "the Hugging Face Hub"
    try:
        place = _download_from_modelscope(owner_and_name) if on_modelscope else owner_and_name
        splits = datasets.load_dataset(place)
    except DataError:
        raise
    except Exception as error:  # each hub and each version of its library raises its own
        raise DataError(
            f"{name}: there is no such file or folder (working folder: {Path.cwd()}), and {hub} "
            f"returned no data set of that name: {type(error).__name__}: {error}. Check the "
            "name and the network, or download the data and give its path."
        ) from error
    data = splits[_choose_split(name, list(splits), split)]
    files = tuple(Path(file["filename"]) for file in data.cache_files)
    return Source(name, files, max_rows, lambda _: _dataset_rows(data, name))


def _download_from_modelscope(dataset_id: str) -> str:
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError as error:
        raise DataError(
            f"{MODELSCOPE}{dataset_id}: ModelScope's library is not installed. "
            "Run `pip install 'glmtune[modelscope]'`."
        ) from error
    return str(dataset_snapshot_download(dataset_id))


def _dataset_rows(data: Any, name: str) -> Iterator[Row]:
    """Yield the rows of a `datasets.Dataset`."""
    import pyarrow

    line = 0
    try:
        for batch in data.iter(batch_size=BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                line += 1
                yield Row(without_nulls(dict(zip(batch, values, strict=True))), name, line)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{name}: cannot be read after row {line}: {error}.") from error
