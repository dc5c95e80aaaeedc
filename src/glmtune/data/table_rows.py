"""Rows of CSV, TSV, Parquet and text files."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmtune.data.rows import BadRow, OnBad, Row, RowCheck, excerpt
from glmtune.data.text_files import ending_of, numbered_lines, open_data_file
from glmtune.errors import DataError

BATCH_ROWS = 1000  # of Parquet and Arrow, at a time


def _read_separated(path: Path, name: str, on_bad: OnBad, separator: str) -> Iterator[Row]:
    """Read a header and records; a quoted field may span several lines."""
    csv.field_size_limit(2**31 - 1)  # the largest that every platform takes; a row may be 1 MB
    problems: list[str] = []
    first_lines: list[str] = []

    def texts() -> Iterator[str]:
        for _, text, problem in numbered_lines(path, name):
            if problem:
                problems.append(problem)
            if not first_lines:
                first_lines.append(text)
            yield text

    records = csv.reader(texts(), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        line = records.line_num + 1
        problems.clear()
        first_lines.clear()
        try:
            record = next(records, None)
            if record is None:
                return
            reason = problems[0] if problems else ""
        except csv.Error as error:
            record, reason = [], f"{error}. A quote may be missing, or not doubled inside quotes."
            if "new-line" in str(error):
                reason = r"lines end in \r alone. Save the file with \n or \r\n."
        if header is None:
            if reason:
                raise DataError(f"{name}:{line}: {reason}")
            header = _header(record, name, separator) if record else None
        elif reason or (record and len(record) != len(header)):
            reason = reason or (
                f"{len(record)} fields, but the header has {len(header)}: {', '.join(header)}."
            )
            start = excerpt("".join(first_lines[:1]))
            check: RowCheck = "encoding" if problems else "unreadable"
            on_bad(BadRow(name, line, "", reason, start, check))
        elif record:
            yield Row(dict(zip(header, record, strict=True)), name, line)


def _header(names: list[str], file: str, separator: str) -> list[str]:
    others = [other for other in "\t;,|" if other != separator and other in names[0]]
    if len(names) == 1 and others:
        raise DataError(
            f"{file}:1: the header {names[0]!r} seems to be separated by {others[0]!r}, expected "
            f"{separator!r}. Use commas in .csv and tabs in .tsv files."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file}:1: the header names a column twice: {', '.join(twice)}.")
    return names


def read_csv(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Read a header line, then one row per record; a record is named by its first line."""
    return _read_separated(path, name, on_bad, ",")


def read_tsv(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Read as `read_csv`, with tabs between fields."""
    return _read_separated(path, name, on_bad, "\t")


def read_text(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Yield a row `{"text": line}` for each line that is not blank."""
    for number, line, problem in numbered_lines(path, name):
        if problem:
            on_bad(BadRow(name, number, "text", problem, excerpt(line), "encoding"))
        elif line.strip():
            yield Row({"text": line.rstrip("\r\n")}, name, number)


def read_parquet(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Read the rows of a Parquet file, batch by batch.

    Raises:
        DataError: it is not Parquet, or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    with open_data_file(path, name) as file:
        # Parquet needs random access, so a compressed file is decompressed in memory.
        source = pyarrow.BufferReader(file.read()) if ending_of(path)[1] else file
        try:
            batches = pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=BATCH_ROWS)
            line = 0
            for batch in batches:
                for line, fields in enumerate(batch.to_pylist(), start=line + 1):  # noqa: B020
                    yield Row(without_nulls(fields), name, line)
        except pyarrow.ArrowException as error:
            raise DataError(
                f"{name}: not a Parquet file, or a damaged one: {error}. Write it again."
            ) from error


def without_nulls(value: Any) -> Any:
    """Remove the fields of nested objects that are null.

    Arrow gives every object of a column the fields of all objects, null where there were none,
    so a tool would get the parameters of all other tools.
    """
    if isinstance(value, dict):
        return {key: without_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [without_nulls(child) for child in value]
    return value
