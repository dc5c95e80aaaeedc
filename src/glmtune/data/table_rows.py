"""Rows of CSV, TSV, Parquet and text files."""

import csv
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from glmtune.data.encodings import copy_name, shell_path
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
            header = _header(record, name, separator) if any(record) else None
        elif reason or record:
            fields, problem = _fields(header, record)
            if reason or problem:
                start = excerpt("".join(first_lines[:1]))
                check: RowCheck = "encoding" if problems else "unreadable"
                on_bad(BadRow(name, line, "", reason or problem, start, check))
            else:
                yield Row(fields, name, line)


def _fields(header: list[str], record: list[str]) -> tuple[dict[str, str], str]:
    """Name the values of a record.

    Excel adds empty columns, to the header and to the records. They are dropped while they are
    empty; a value in a column without a name is not.

    Returns:
        The values by their columns, and what is wrong with the record.
    """
    named = [index for index, column in enumerate(header) if column]
    beyond = [index for index, value in enumerate(record) if value and index not in named]
    if (beyond and header.count("") != 1) or len(record) <= named[-1]:
        if beyond and beyond[0] < len(header):
            where = f"column {beyond[0] + 1}, which has no name in the header"
            return {}, f"{excerpt(record[beyond[0]])!r} is in {where}. Name it, or empty it."
        names = ", ".join(filter(None, header))
        remedy = "A text with a separator in it needs quotes around it."
        return {}, f"{len(record)} fields, but the header has {len(named)}: {names}. {remedy}"
    kept = [*named, *beyond]  # one column without a name is usual: the row numbers of pandas
    if kept[-1] >= len(header):
        remedy = "A text with a separator in it needs quotes around it."
        names = ", ".join(header)
        return {}, f"{len(record)} fields, but the header has {len(header)}: {names}. {remedy}"
    return {header[index]: record[index] for index in sorted(kept)}, ""


def _header(names: list[str], file: str, separator: str) -> list[str]:
    """Check the names of columns; the last ones may be empty."""
    shown = separator.join(names).rstrip(separator)
    others = [other for other in "\t;,|" if other != separator and other in shown]
    is_declared = shown.startswith("sep=")  # the first line in some files of Excel
    if (others and separator not in shown) or is_declared:
        other = shown[4:5] if is_declared else others[0]
        problem = f"seems to be separated by {other!r}, expected {separator!r}"
        if is_declared:
            problem = "is a setting of Excel, expected the names of columns"
        raise DataError(
            f"{file}:1: the header {shown!r} {problem}. "
            f"{_conversion_advice(file, other or separator, separator, skip_first=is_declared)}"
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{file}:1: the header names a column twice: {', '.join(twice)}.")
    return names


def _conversion_advice(file: str, theirs: str, ours: str, *, skip_first: bool) -> str:
    """Return the command that writes a table with our separator, as a sentence."""
    if ending_of(Path(file))[1]:
        return f"Unpack the file, and save it with {ours!r} between its fields."
    skip = "next(f); " if skip_first else ""
    program = (
        'import csv, sys; f = open(sys.argv[1], encoding="utf-8-sig", newline=""); '
        f'{skip}csv.writer(open(sys.argv[2], "w", encoding="utf-8", newline=""), '
        f"delimiter={json.dumps(ours)}).writerows(csv.reader(f, delimiter={json.dumps(theirs)}))"
    )
    command = f"python3 -c {shlex.quote(program)} {shell_path(file)}"
    return (
        f"Use commas in .csv and tabs in .tsv files. `{command} "
        f"{shell_path(copy_name(file, 'fixed'))}` writes such a copy; give that file instead."
    )


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
        yield from arrow_rows(
            lambda: pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=BATCH_ROWS),
            name,
            f"{name}: not a Parquet file, or a damaged one",
            on_bad,
        )


def arrow_rows(
    open_batches: Callable[[], Iterable[Any]], name: str, damage: str, on_bad: OnBad
) -> Iterator[Row]:
    """Read the rows of Arrow's batches; a row with a value that cannot be read is a bad row.

    Args:
        open_batches: returns record batches or tables.
        name: of the file or data set.
        damage: begins the message if they cannot be read.
        on_bad: called with every row that cannot be read.

    Raises:
        DataError: the batches cannot be read to their end.
    """
    line = 0
    batches: Iterator[Any] | None = None
    while True:
        try:
            batches = iter(open_batches()) if batches is None else batches
            batch = next(batches, None)
        # Arrow raises errors of many types for damaged files, among them KeyError and OSError.
        except Exception as error:
            after = f" after row {line}" if line else ""
            why = " ".join(str(error).split())
            raise DataError(f"{damage}{after}: {excerpt(why)}. Write it again.") from error
        if batch is None:
            return
        if line == 0:
            _refuse_repeated_columns(list(batch.schema.names), name)
        for fields in _python_rows(batch):
            line += 1
            if isinstance(fields, str):
                on_bad(BadRow(name, line, "", fields, "", "encoding"))
            else:
                yield Row(without_nulls(fields), name, line)


def _refuse_repeated_columns(names: list[str], name: str) -> None:
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise DataError(
            f"{name}: has a column twice: {', '.join(twice)}. Rename or remove one of them."
        )


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Convert a batch to rows; a row with a value that Python has no type for is why not."""
    try:
        batch.validate(full=True)  # a damaged offset would be followed out of the file
        rows: list[dict[str, Any]] = batch.to_pylist()
    # Each type of Arrow has its own code for this, and its own errors.
    except Exception:  # find out which rows these are
        yield from (_python_row(batch.slice(index, 1)) for index in range(batch.num_rows))
    else:
        yield from rows


def _python_row(row: Any) -> dict[str, Any] | str:
    fields: dict[str, Any] = {}
    for column, values in zip(row.schema.names, row.columns, strict=True):
        try:
            values.validate(full=True)
        except Exception as error:
            if "UTF8" in str(error):
                return f"column {column!r} is not UTF-8. Write its text again."
            return f"column {column!r} is damaged: {excerpt(str(error))}. Write the file again."
        try:
            fields[column] = values.to_pylist()[0]
        except Exception as error:
            fields[column] = _as_text(values)
            if fields[column] is None:
                what = f"column {column!r} has a value of type {values.type} that cannot be read"
                return f"{what}: {excerpt(str(error))}. Convert that column to text."
    return fields


def _as_text(values: Any) -> str | None:
    """Return a time that Python has no type for as text, such as one with nanoseconds."""
    import pyarrow

    try:
        text: str = values.cast(pyarrow.string()).to_pylist()[0]
    except Exception:
        return None
    return None if text.startswith("<value out of range") else text


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
