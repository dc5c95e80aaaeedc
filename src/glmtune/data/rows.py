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

What cannot be read is named by file and line. One bad row of many is given to `on_bad`, and
reading goes on after it. A file that cannot be used as a whole raises: the rows that would
silently be missing are too many for one line in a report.
"""

import contextlib
import csv
import difflib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from glmtune.errors import DataError

BLOCK_BYTES = 1 << 20
BATCH_ROWS = 1000  # of Parquet and Arrow, at a time
EXCERPT_CHARS = 120
MODELSCOPE = "modelscope://"

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CAP = re.compile(r"(.+)#([1-9]\d*)")
_SPACE = re.compile(r"[ \t\n\r]*")
_NOT_DATA = {"dataset_info.json", "dataset_infos.json"}  # describe data sets, hold no rows


class Row(dict[str, Any]):
    """The fields of one row, and where it stands.

    Attributes:
        file: the path as the user gave it, or the hub id.
        line: the line it starts on, counted from 1; for Parquet and Arrow the row number,
            counted from 1.
    """

    def __init__(self, fields: dict[str, Any], file: str, line: int) -> None:
        super().__init__(fields)
        self.file = file
        self.line = line


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why.

    Attributes:
        file: as in `Row`.
        line: as in `Row`.
        field: the field at fault, "" when it is the row as a whole.
        reason: what was got, what was expected, what to do.
        excerpt: the beginning of what stands there.
    """

    file: str
    line: int
    field: str
    reason: str
    excerpt: str

    def __str__(self) -> str:
        field = f"field {self.field!r}: " if self.field else ""
        return f"{self.file}:{self.line}: {field}{self.reason}"


class RowError(DataError):
    """One row cannot be used; others of its file may be fine."""

    def __init__(self, bad: BadRow) -> None:
        super().__init__(str(bad))
        self.bad = bad


OnBad = Callable[[BadRow], None]


@dataclass(frozen=True, slots=True)
class Source:
    """One source, found: what `read_rows` reads.

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
        """Read them, as `read_rows` does."""
        return itertools.islice(self._read(on_bad or _raise), self.max_rows)


def read_rows(
    source: str | Path, *, split: str | None = None, on_bad: OnBad | None = None
) -> Iterator[Row]:
    """Read the rows of a file, a folder or a hub id, in order.

    Args:
        source: see the module's docstring.
        split: for hub ids and `save_to_disk` folders, which have splits; "train" if not given.
        on_bad: is told of every row that cannot be read. Without it the first one raises.

    Raises:
        DataError: nothing can be read there (at once), or a file is damaged (on the way).
        RowError: a row cannot be read, and there is no `on_bad`.
    """
    return find_source(source, split=split).rows(on_bad)


def find_source(source: str | Path, *, split: str | None = None) -> Source:
    """Find what a user's path or hub id means. A path that exists never asks the network.

    Raises:
        DataError: there is no such thing, it holds no data, or it has no such split.
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


# --- Which file is what -------------------------------------------------------------------


def _ending(path: Path) -> tuple[str, str]:
    """The ending that tells the kind of file, "" if unknown, and that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    return (kind if kind in _READERS else "", compression)


def _reader(path: Path, name: str) -> Callable[[OnBad], Iterator[Row]]:
    kind, _ = _ending(path)
    if not kind:
        raise DataError(
            f"{name}: the ending {path.suffix!r} is not known, expected one of "
            f"{', '.join(_READERS)}, or one of these with .gz or .zst behind. "
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
    files = [path for path in found if _ending(path)[0] and path.name not in _NOT_DATA]
    if not files:
        held = ", ".join(path.name for path in found[:5]) or "nothing"
        raise DataError(
            f"{name}: this folder has no data file; it holds {held}"
            f"{', ...' if len(found) > 5 else ''}. Known endings: {', '.join(_READERS)}, "
            "also with .gz or .zst."
        )
    return files


def _refuse_missing(name: str, path: Path) -> NoReturn:
    """Say that a file is missing, and which one may have been meant."""
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


def _raise(bad: BadRow) -> NoReturn:
    raise RowError(bad)


# --- Bytes and lines ----------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacking .gz and .zst.

    Raises:
        DataError: also while reading, for a file that is damaged or cut off.
    """
    compression = _COMPRESSIONS.get(_ending(path)[1])
    try:
        if compression is None:
            with path.open("rb") as file:
                yield file
        else:
            import pyarrow

            with pyarrow.input_stream(str(path), compression=compression) as packed:
                yield io.BufferedReader(packed, BLOCK_BYTES)
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read to its end: {error}. "
            "If it was downloaded or copied, do that again."
        ) from error


def _lines(path: Path, name: str) -> Iterator[tuple[int, str, str]]:
    r"""Number, text with its ending, and what is wrong with its bytes ("" if nothing is).

    Only \n ends a line: other separators of Unicode may stand inside JSON strings.
    """
    offset = 0
    with _open(path, name) as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if number == 1:
                _refuse_utf16(line, name)
                line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
            try:
                text, problem = line.decode(), ""
            except UnicodeDecodeError as error:
                text = line.decode(errors="surrogateescape")
                at = start + error.start + (offset - start - len(line))
                problem = _not_utf8(line, error, at, path)
            if "\0" in text:
                problem = (
                    f"byte {start + line.index(0)} is a null byte: the file was damaged, or is "
                    "not text. Write it again, or take the null bytes out."
                )
            yield number, text, problem


def _refuse_utf16(head: bytes, name: str) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:2].count(0) == 1:
        raise DataError(
            f"{name}: looks like UTF-16, expected UTF-8: convert it with "
            f"`iconv -f UTF-16 -t UTF-8 {name} > utf8-{Path(name).name}`."
        )


def _not_utf8(line: bytes, error: UnicodeDecodeError, offset: int, path: Path) -> str:
    """Say which byte is wrong, and what the file probably is.

    GBK is only guessed where nothing before the byte was UTF-8 beyond ASCII: otherwise the
    file is UTF-8 and damaged.
    """
    where = f"byte {offset} (0x{line[error.start]:02x}) is not UTF-8"
    if error.reason == "unexpected end of data" and not line.endswith(b"\n"):
        return f"{where}: the file breaks off inside a character. Write it again."
    if line[: error.start].isascii():
        with contextlib.suppress(UnicodeDecodeError):
            line.decode("gb18030")
            return (
                f"{where}. It looks like GBK: convert with "
                f"`iconv -f GBK -t UTF-8 {path.name} > utf8-{path.name}`."
            )
    return f"{where}. Mend that character, or leave such rows out with data.bad_rows: skip."


# --- JSON ---------------------------------------------------------------------------------


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON. Write a number, a text or null.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large.")
    return number


_JSON = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_LENIENT_JSON = json.JSONDecoder()  # to find the end of a row that holds NaN


def parse_json(text: str) -> Any:
    """Parse one JSON value, without the NaN and Infinity that Python's own parser accepts.

    Raises:
        ValueError: not JSON; the message says why, and at which character.
    """
    try:
        return _JSON.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None


def _non_finite_field(value: Any, path: str = "") -> str:
    """Where in a parsed value a NaN or an infinity stands, as in `scores[2]`; "" if nowhere."""
    if isinstance(value, float) and not math.isfinite(value):
        return path
    children: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        children = ((f"{path}.{key}" if path else str(key), child) for key, child in value.items())
    elif isinstance(value, list):
        children = ((f"{path}[{index}]", child) for index, child in enumerate(value))
    return next(filter(None, (_non_finite_field(child, where) for where, child in children)), "")


def excerpt(text: str) -> str:
    """The beginning of a text, fit to be printed and written to a UTF-8 file."""
    start = text[: EXCERPT_CHARS + 1].strip().encode(errors="backslashreplace").decode()
    return start if len(text) <= EXCERPT_CHARS else start[:EXCERPT_CHARS] + "..."


def _not_an_object(value: Any) -> str:
    return (
        f"a {type(value).__name__} stands here, expected an object with named fields, "
        'as in {"instruction": "...", "output": "..."}.'
    )


def _read_json(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Look at the beginning of a JSON file and read it as what it is."""
    with _open(path, name) as file:
        first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    _refuse_utf16(first, name)
    first = first.removeprefix(b"\xef\xbb\xbf").strip()
    if first.startswith(b"["):
        return _read_array(_JsonText(path, name), on_bad)
    if _ending(path)[0] != ".json":
        return _read_json_lines(path, name, on_bad)
    if not first:
        raise DataError(f"{name}: the file is blank, expected rows. Write it again.")
    if not first.startswith(b"{"):
        hint = ""
        if first.startswith(b"version https://git-lfs"):
            hint = "This is the pointer of a Git LFS file, not its data: run `git lfs pull`. "
        raise DataError(
            f"{name}:1: not JSON: it begins with {first[:40].decode(errors='replace')!r}, "
            f"expected '[' or '{{'. {hint}A file of lines of JSON is named .jsonl."
        )
    try:
        is_lines = not isinstance(json.loads(first).get("data"), list)
    except (ValueError, RecursionError):
        is_lines = False  # the object goes on in the next line
    return (_read_json_lines if is_lines else _read_objects)(path, name, on_bad)


def _read_json_lines(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    for number, line, problem in _lines(path, name):
        if not line.strip():
            continue
        if problem:
            on_bad(BadRow(name, number, "", problem, excerpt(line)))
            continue
        try:
            fields = parse_json(line)
        except ValueError as error:
            field, reason = _why_not_json(line, error)
            on_bad(BadRow(name, number, field, reason, excerpt(line)))
            continue
        if isinstance(fields, dict):
            yield Row(fields, name, number)
        else:
            on_bad(BadRow(name, number, "", _not_an_object(fields), excerpt(line)))


def _why_not_json(line: str, error: ValueError) -> tuple[str, str]:
    """The field at fault, if it is one, and the reason."""
    if not isinstance(error, json.JSONDecodeError):
        try:
            return _non_finite_field(_LENIENT_JSON.decode(line)), str(error)
        except (ValueError, RecursionError):
            return "", str(error)
    last = "" if line.endswith("\n") else " It is the last line: the file may break off here."
    return "", f"not JSON: {error.msg} at character {error.pos + 1}.{last}"


class _JsonText:
    """A JSON text that is read value by value and never held as a whole.

    Attributes:
        line: the line that the next character stands on.
        skipped: the text of the last value that held NaN.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.line = 1
        self.skipped = ""
        self._blocks = _text_blocks(path, name)
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        if (char := self._text[self._at : self._at + 1]) and char not in " \t\n\r":
            return char
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._go_to(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def take(self, expected: str) -> None:
        """Go past one character, which must be the expected one."""
        if (got := self.peek()) != expected:
            if got:
                self.refuse(f"expected {expected!r}")
            raise _BreaksOffError
        self._at += 1

    def value(self) -> Any:
        """Go past one value, and return it.

        Raises:
            DataError: not JSON.
            _BreaksOffError: the file ends inside the value.
            ValueError: the value holds NaN or the like; we are past it.
        """
        while True:
            try:
                value, end = _JSON.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._grow():
                    continue
                if self._is_cut(error):
                    raise _BreaksOffError from None
                self.refuse(error.msg, error.pos)
            except RecursionError:
                self.refuse("nested too deeply")
            except ValueError:
                if self._skip_lenient():
                    raise
                continue
            if end == len(self._text) and self._grow():
                continue  # a number may go on in the next block
            self._go_to(end)
            return value

    def refuse(self, reason: str, at: int | None = None) -> NoReturn:
        """Say that the file as a whole is not JSON, and where it stops being it."""
        at = self._at if at is None else at
        if reason.startswith("Invalid control character"):
            reason = r"a line break or tab inside a text, which is written \n or \t"
        line = self.line + self._text.count("\n", self._at, at)
        around = self._text[max(0, at - 20) : at + 20]
        raise DataError(
            f"{self.name}:{line}: not JSON: {reason}, near {around!r}. The rows before are fine, "
            "those behind cannot be found: mend this place. (In a .jsonl file, with one row "
            "per line, data.bad_rows: skip can leave out a broken row.)"
        )

    def rest(self) -> str:
        """What is in memory of the text that comes next."""
        return self._text[self._at :]

    def _go_to(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _grow(self) -> bool:
        """Read at least as much again as is left, so that a huge row is not read often."""
        rest = self._text[self._at :]
        parts, wanted = [rest], max(1, len(rest))
        while wanted > 0 and (block := next(self._blocks, "")):
            parts.append(block)
            wanted -= len(block)
        if len(parts) == 1:
            return False  # the text stays, and with it every position in it
        self._text, self._at = "".join(parts), 0
        return True

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may come from the end of the block: 16 > len("-Infinity")."""
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 16

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the error comes from the end of the file."""
        rest = self._text[error.pos :].strip()
        return (
            not rest
            or error.msg.startswith("Unterminated")
            or (error.msg.startswith("Invalid \\") and '"' not in rest)
            or any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "-Infinity"))
            or re.fullmatch(r"\.|[eE][+-]?", rest) is not None  # the middle of a number
        )

    def _skip_lenient(self) -> bool:
        """Go past a value that holds NaN; False if more of it had to be read first."""
        try:
            _, end = _LENIENT_JSON.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            if self._grow():
                return False
            self.refuse(error.msg, error.pos)
        except ValueError as error:  # an integer of thousands of digits
            self.refuse(str(error))
        self.skipped = self._text[self._at : end]
        self._go_to(end)
        return True

    def bad_field(self, prefix: str = "") -> str:
        """The field of the skipped value that is to blame."""
        return _non_finite_field(_LENIENT_JSON.decode(self.skipped), prefix)


class _BreaksOffError(Exception):
    """The file ends in the middle of a value. Never leaves this module."""


def _text_blocks(path: Path, name: str) -> Iterator[str]:
    """Decode a file block by block.

    Raises:
        DataError: not UTF-8: names line and byte.
    """
    import codecs

    rest, offset, line = b"", 0, 1
    with _open(path, name) as file:
        while block := file.read(BLOCK_BYTES):
            data = rest + block
            if offset == 0 and data.startswith(codecs.BOM_UTF8):
                data, offset = data[3:], 3
            try:
                text, used = codecs.utf_8_decode(data, "strict", False)
            except UnicodeDecodeError as error:
                line += data.count(b"\n", 0, error.start)
                problem = _not_utf8(data, error, offset + error.start, path)
                raise DataError(f"{name}:{line}: {problem}") from None
            rest, offset = data[used:], offset + used
            line += text.count("\n")
            if text:
                yield text
    # What is left are the first bytes of a character, so the JSON is cut off there, and the
    # reader will say so.


def _read_array(text: _JsonText, on_bad: OnBad) -> Iterator[Row]:
    """Read `[row, row, ...]`, from the bracket to the end of the file."""
    try:
        yield from _array_items(text, on_bad)
    except _BreaksOffError:
        _report_break(text, on_bad)
        return
    if text.peek():
        text.refuse("there is more after the end of the array")


def _array_items(text: _JsonText, on_bad: OnBad) -> Iterator[Row]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        text.peek()
        line = text.line
        try:
            value = text.value()
        except ValueError as error:
            on_bad(BadRow(text.name, line, text.bad_field(), str(error), excerpt(text.skipped)))
        else:
            if isinstance(value, dict):
                yield Row(value, text.name, line)
            else:
                on_bad(BadRow(text.name, line, "", _not_an_object(value), excerpt(repr(value))))
        if text.peek() == "]":
            text.take("]")
            return
        text.take(",")


def _report_break(text: _JsonText, on_bad: OnBad) -> None:
    reason = (
        "the file breaks off here, in the middle of the row that begins on this line. "
        "The rows before it are fine. Write or download the file again."
    )
    if not text.peek():
        reason = (
            "the file breaks off here: the closing ']' is missing. "
            "The rows before are fine. Write or download the file again."
        )
    on_bad(BadRow(text.name, text.line, "", reason, excerpt(text.rest())))


def _read_objects(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Read objects one after the other: rows, or one that has all the rows under "data"."""
    text = _JsonText(path, name)
    try:
        while text.peek():
            yield from _object(text, on_bad)
    except _BreaksOffError:
        _report_break(text, on_bad)


def _object(text: _JsonText, on_bad: OnBad) -> Iterator[Row]:
    line = text.line
    fields: dict[str, Any] = {}
    bad: BadRow | None = None
    holds_rows = False
    text.take("{")
    while text.peek() != "}":
        if fields:
            text.take(",")
        if text.peek() != '"':
            text.take('"')
        key = text.value()
        text.take(":")
        fields[key] = None
        if key == "data" and text.peek() == "[":
            holds_rows = True
            yield from _array_items(text, on_bad)
            continue
        text.peek()
        try:
            fields[key] = text.value()
        except ValueError as error:
            bad = BadRow(text.name, line, text.bad_field(key), str(error), excerpt(text.skipped))
    text.take("}")
    if bad is not None:
        on_bad(bad)
    elif not holds_rows:
        yield Row(fields, text.name, line)


# --- Tables -------------------------------------------------------------------------------


def _read_separated(path: Path, name: str, on_bad: OnBad, separator: str) -> Iterator[Row]:
    """Read a header and records; a record may go over several lines within quotes."""
    csv.field_size_limit(2**31 - 1)  # the largest that every platform takes; a row may be 1 MB
    problems: list[str] = []
    first_lines: list[str] = []

    def texts() -> Iterator[str]:
        for _, text, problem in _lines(path, name):
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
            on_bad(BadRow(name, line, "", reason, excerpt("".join(first_lines[:1]))))
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


def _read_csv(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    return _read_separated(path, name, on_bad, ",")


def _read_tsv(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    return _read_separated(path, name, on_bad, "\t")


def _read_text(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    for number, line, problem in _lines(path, name):
        if problem:
            on_bad(BadRow(name, number, "text", problem, excerpt(line)))
        elif line.strip():
            yield Row({"text": line.rstrip("\r\n")}, name, number)


def _read_parquet(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with _open(path, name) as file:
        # A packed file has no random access, which Parquet needs: it is unpacked in memory.
        source = pyarrow.BufferReader(file.read()) if _ending(path)[1] else file
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
    """Leave out the fields of nested objects that are null.

    Arrow gives every object of a column the fields of all of them, null where there were
    none, so a tool would show the parameters of all other tools.
    """
    if isinstance(value, dict):
        return {key: without_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [without_nulls(child) for child in value]
    return value


_READERS: dict[str, Callable[[Path, str, OnBad], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


# --- The datasets library and the hubs ------------------------------------------------------


def _find_saved(name: str, folder: Path, split: str | None, max_rows: int | None) -> Source:
    """A folder written by `save_to_disk`, of a Dataset or of a DatasetDict."""
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
            f"did not give a data set of that name: {type(error).__name__}: {error}. Check the "
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
    """The rows of a `datasets.Dataset`."""
    import pyarrow

    line = 0
    try:
        for batch in data.iter(batch_size=BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                line += 1
                yield Row(without_nulls(dict(zip(batch, values, strict=True))), name, line)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{name}: cannot be read after row {line}: {error}.") from error
