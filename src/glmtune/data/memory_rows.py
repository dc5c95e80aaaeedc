"""Rows in memory -> a file in the cache, which is then read as any other file.

    [{"instruction": ..., "output": ...}, ...]
    datasets.Dataset                            ->   <cache>/rows/rows-1f3a8c0d52e7.jsonl
    pandas.DataFrame

The file is named by its content, and a recipe names the file. So rows in memory have the identity,
the fingerprint and the lint of rows in a file, a run over them is resumed and repeated in another
session, and line 3 of a message is the third row.
"""

import contextlib
import datetime
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.data.cache import cache_home
from glmtune.data.rows import ESCAPED
from glmtune.errors import DataError, OutputError
from glmtune.files import explain_write_error, sha256_of_file
from glmtune.recipe.sources import SourceSection

BATCH_ROWS = 1000  # of a Dataset or a DataFrame, at a time
MAX_DEPTH = 100  # of lists and mappings in a row; a file may have no more either
EXPECTED = "expected a path, a list of dicts, a datasets.Dataset or a pandas.DataFrame"


def as_sources(rows: Any, name: str = "rows") -> list[Any]:
    """Return rows as sources of a recipe; those in memory are written to a file.

    Args:
        rows: a path or hub id, a source with keys of its own, rows in memory, or a list of these.
        name: of the argument, for errors.

    Returns:
        Paths, and sources with keys of their own.

    Raises:
        DataError: it is none of these, or a row cannot be written as JSON.
        OutputError: the cache cannot be written.
    """
    if isinstance(rows, list | tuple) and rows and not _is_row(rows[0]):
        if all(isinstance(each, list | tuple) for each in rows):
            raise DataError(
                f"{name}[0]: {_what(rows[0])}, expected a dict. A dialogue is written as "
                '{"messages": [{"role": "user", "content": "..."}, ...]}.'
            )
        return [_as_source(each, f"{name}[{index}]") for index, each in enumerate(rows)]
    return [_as_source(rows, name)]


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and not _is_source(value)


def _is_source(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a source with keys of its own; no row has a path and nothing else."""
    return "path" in value and set(value) <= set(SourceSection.model_fields)


def _as_source(value: Any, name: str) -> Any:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, SourceSection):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping) and _is_source(value):
        return dict(value)
    return str(write_rows(value, name))


def write_rows(rows: Any, name: str = "rows", *, cache_dir: str | Path | None = None) -> Path:
    """Write rows in memory to a file in the cache that is named by its content.

    Args:
        rows: a list of dicts, a `datasets.Dataset` or a `pandas.DataFrame`.
        name: of the argument, for errors.
        cache_dir: as for `encode_data`.

    Raises:
        DataError: they are something else, there are none, or a value cannot be written.
        OutputError: the cache cannot be written.
    """
    folder = cache_home(cache_dir) / "rows"
    digest = hashlib.sha256()
    count = 0
    partial = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            for row in _rows_of(rows, name):
                count += 1
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode(errors=ESCAPED)
                digest.update(line)
                file.write(line)
        if not count:
            raise DataError(f"{name}: there are no rows in it. Give at least one.")
        target = folder / f"rows-{digest.hexdigest()[:12]}.jsonl"
        if not target.is_file() or sha256_of_file(target) != digest.hexdigest():
            partial.replace(target)  # an equal file stays as it is: another run may be reading it
    except OSError as error:
        raise OutputError(explain_write_error(folder, error)) from error
    finally:
        if partial is not None:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
    return target


def _rows_of(rows: Any, name: str) -> Iterator[dict[str, Any]]:
    """Read rows of any kind as plain values, one by one."""
    if _is_a(rows, "pandas", "DataFrame"):
        yield from _plain_rows(_frame_rows(rows, name), name)
    elif _is_a(rows, "datasets", "Dataset"):
        yield from _plain_rows(_data_set_rows(rows), name)
    elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        yield from _plain_rows(rows, name)
    else:
        raise DataError(f"{name}: {_what(rows)}, {EXPECTED}. {_remedy(rows)}")


def _is_a(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of a library, which is not imported for that."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _what(value: Any) -> str:
    return f"got a value of type {type(value).__name__}"


def _remedy(value: Any) -> str:
    if _is_a(value, "datasets", "DatasetDict"):
        return f"Choose a split, such as rows[{next(iter(value), 'train')!r}]."
    if isinstance(value, Mapping):
        return "A table of columns becomes rows by pandas.DataFrame(rows)."
    if _is_a(value, "datasets", "IterableDataset") or isinstance(value, Iterator):
        return "Collect its rows first: list(rows)."
    return "Convert it to a list of dicts, one for each row."


def _frame_rows(frame: Any, name: str) -> Iterator[Mapping[Any, Any]]:
    """Read a DataFrame; a missing value (NaN, NaT, NA) is a field that the row does not have."""
    if not frame.columns.is_unique:
        twice = sorted({str(each) for each in frame.columns[frame.columns.duplicated()]})
        raise DataError(f"{name}: has a column twice: {', '.join(twice)}. Rename one of them.")
    for start in range(0, len(frame), BATCH_ROWS):
        part = frame.iloc[start : start + BATCH_ROWS]
        is_known = part.notna().to_dict("records")
        values = part.astype(object).to_dict("records")
        for row, known in zip(values, is_known, strict=True):
            yield {column: value for column, value in row.items() if known[column]}


def _data_set_rows(data: Any) -> Iterator[Mapping[Any, Any]]:
    from glmtune.data.table_rows import without_nulls

    for table in data.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from map(without_nulls, table.to_pylist())


def _plain_rows(rows: Any, name: str) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name}[{index}]: {_what(row)}, expected a dict with named fields, such as "
                '{"instruction": "...", "output": "..."}.'
            )
        yield _plain(row, f"{name}[{index}]", 0)


def _plain(value: Any, where: str, depth: int) -> Any:
    """Return a value as JSON can hold it; NaN is null, and a date is text.

    Raises:
        DataError: it is of another type; names its place.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise DataError(f"{where}: is infinite, which no row may have. Remove the value.")
        return None if math.isnan(value) else float(value)
    if depth > MAX_DEPTH:
        raise DataError(f"{where[:80]}: is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, Mapping):
        return {
            _key(key, where): _plain(child, f"{where}[{key!r}]", depth + 1)
            for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(child, f"{where}[{i}]", depth + 1) for i, child in enumerate(value)]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # of numpy or torch
        return _plain(value.tolist(), where, depth + 1)
    raise DataError(
        f"{where}: {_what(value)}, expected text, a number, true, false, None, a list or a dict. "
        "Convert it, or leave the field out."
    )


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return str(key)
    raise DataError(
        f"{where}: has the field {key!r} of type {type(key).__name__}, expected text. Rename it."
    )
