"""Rows of JSON and JSON Lines files, read block by block.

An array may be larger than memory, so it is parsed value by value with the standard library's
`raw_decode`. A streaming parser such as ijson would be shorter, but it does not say on which line
a row begins, nor where a truncated file breaks off, and it stops at the first NaN, where we name
the field and continue with the next row.
"""

import contextlib
import functools
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

from glmtune.data.json_values import (
    LENIENT,
    MAX_DEPTH,
    STRICT,
    RepeatedKeyError,
    check_depth,
    check_repeated,
    non_finite_field,
    parse_json,
    why_not_json,
)
from glmtune.data.rows import BadRow, OnBad, Row, excerpt
from glmtune.data.splits import SPLIT_WORDS
from glmtune.data.text_files import (
    BLOCK_BYTES,
    MAX_HEAD_BYTES,
    encoding_advice,
    ending_of,
    first_line,
    not_utf8,
    numbered_lines,
    open_data_file,
)
from glmtune.errors import DataError

_STARTS_TEXTS = re.compile(rb"\[\s*\"")
_Keys = dict[str, Literal["rows", "empty", "other"]]
_SPACE = re.compile(r"[ \t\n\r]*")


def _as_row(value: Any, name: str, line: int) -> Row | None:
    """Return a value as a row; None if it cannot be one.

    A list of texts is a dialogue without names, as UltraChat has it: its field is `data`.
    """
    if isinstance(value, dict):
        return Row(value, name, line)
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return Row({"data": value}, name, line)
    return None


def _not_an_object(value: Any) -> str:
    return (
        f"got a value of type {type(value).__name__}, expected an object with named fields, "
        'as in {"instruction": "...", "output": "..."}.'
    )


def read_json(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Read a JSON file: lines of objects, an array, or one object with rows under "data".

    Raises:
        DataError: the file is blank, or not JSON.
    """
    first = first_line(path, name)
    # Only a list of texts is parsed here: the first line may be a complete array of rows.
    is_array = first.startswith(b"[") and not _STARTS_TEXTS.match(first)
    if is_array or (first.startswith(b"[") and not _is_complete(first, list)):
        return _read_array(_JsonText(path, name), on_bad)
    if ending_of(path)[0] != ".json":
        return _read_json_lines(path, name, on_bad)
    if not first:
        raise DataError(f"{name}: the file is blank, expected rows. Write it again.")
    if first.startswith(b"["):
        return _read_json_lines(path, name, on_bad)
    if not first.startswith(b"{"):
        hint = ""
        if first.startswith(b"version https://git-lfs"):
            hint = "This is the pointer of a Git LFS file, not its data: run `git lfs pull`. "
        raise DataError(
            f"{name}:1: not JSON: it begins with {first[:40].decode(errors='replace')!r}, "
            f"expected '[' or '{{'. {hint}A file of lines of JSON is named .jsonl."
        )
    if _has_rows_under_data(_keys_of(path, name)):
        return read_rows_under("data", path, name, on_bad)
    is_lines = _is_complete(first, dict)
    return (_read_json_lines if is_lines else _read_objects)(path, name, on_bad)


def _is_complete(line: bytes, kind: type) -> bool:
    """Whether a line is an object, or a list of texts, that does not continue in the next line."""
    if len(line) == MAX_HEAD_BYTES:
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, kind) and _as_row(value, "", 0) is not None


def split_names(path: Path, name: str) -> tuple[str, ...]:
    """List the splits of a JSON file that has them: {"train": [row, ...], "test": [row, ...]}.

    Returns:
        The keys; none for any other file.
    """
    if ending_of(path)[0] != ".json" or not first_line(path, name, 1024).startswith(b"{"):
        return ()
    keys = _lone_object(path, name, only=SPLIT_WORDS) or {}
    kinds = set(keys.values())
    return tuple(keys) if "rows" in kinds and kinds <= {"rows", "empty"} else ()


def lists_beside_data(path: Path, name: str) -> tuple[str, ...]:
    """List the keys of a JSON file that hold rows beside those under "data", which alone are read.

    Returns:
        The keys; none for a file that is not one object with rows under "data".
    """
    if ending_of(path)[0] != ".json" or not first_line(path, name, 1024).startswith(b"{"):
        return ()
    keys = _keys_of(path, name)
    if not _has_rows_under_data(keys):
        return ()
    return tuple(key for key, holds in keys.items() if holds == "rows" and key != "data")


def _has_rows_under_data(keys: _Keys) -> bool:
    return keys.get("data") == "rows" or keys == {"data": "empty"}


def _keys_of(path: Path, name: str) -> _Keys:
    """Return the keys of a file that is one object; of a large file they are looked at once."""
    status = path.stat()
    return _known_keys(path, name, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _known_keys(path: Path, name: str, *_version: int) -> _Keys:
    return _lone_object(path, name) or {}


def _lone_object(path: Path, name: str, only: Collection[str] | None = None) -> _Keys | None:
    """Look at the keys of a file that is one JSON object. Of any other, only the start is read.

    Args:
        path, name: of the file.
        only: stop at a key that is not among these.

    Returns:
        key -> whether it holds rows, an empty list or something else; those before the first
        error where the file is damaged. None if there are several objects, or other keys.
    """
    text = _JsonText(path, name)
    keys: _Keys = {}
    try:
        text.take("{")
        while text.peek() != "}":
            if keys:
                text.take(",")
            key = text.key()
            if only is not None and key not in only:
                return None
            keys[key] = "other"
            if text.peek() != "[":
                text.skip()
                continue
            text.take("[")
            if (start := text.peek()) in ("{", "]"):
                keys[key] = "rows" if start == "{" else "empty"
            while text.peek() != "]":
                text.skip()
                if text.peek() != "]":
                    text.take(",")
            text.take("]")
        text.take("}")
        return None if text.peek() else keys
    except (_BreaksOffError, DataError):  # is reported when the rows are read
        return keys


def _read_json_lines(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    for number, line, problem in numbered_lines(path, name):
        if not line.strip():
            continue
        if problem:
            on_bad(BadRow(name, number, "", problem, excerpt(line), "encoding"))
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            field, reason = why_not_json(line, error)
            on_bad(BadRow(name, number, field, reason, excerpt(line)))
            continue
        if isinstance(value, dict):
            yield Row(value, name, number)
        elif (row := _as_row(value, name, number)) is not None:
            yield row
        else:
            on_bad(BadRow(name, number, "", _not_an_object(value), excerpt(line)))


class _JsonText:
    """A JSON text that is read value by value and never entirely in memory.

    Attributes:
        line: the line of the next character.
        skipped: the text of the last value with NaN.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.line = 1
        self.skipped = ""
        self._blocks = _text_blocks(path, name)
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end of the file."""
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
        """Consume one character, which must be the expected one."""
        if (got := self.peek()) != expected:
            if got:
                self.refuse(f"expected {expected!r}")
            raise _BreaksOffError
        self._at += 1

    def key(self) -> str:
        """Consume the key of a field and the colon after it."""
        if self.peek() != '"':
            self.take('"')
        key: str = self.value()
        self.take(":")
        return key

    def skip(self) -> None:
        """Consume one value, whatever it is."""
        self.peek()
        with contextlib.suppress(ValueError):
            self.value()

    def value(self) -> Any:
        """Consume one value, and return it.

        Raises:
            DataError: not JSON.
            _BreaksOffError: the file ends inside the value.
            ValueError: the value has NaN, a key twice or the like; it is consumed.
        """
        while True:
            try:
                value, end = STRICT.raw_decode(self._text, self._at)
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
                continue  # a number may continue in the next block
            start = self._at
            self._go_to(end)
            if end - start > 2 * MAX_DEPTH and self._num_brackets(start, end) > MAX_DEPTH:
                self.skipped = self._text[start:end]
                check_depth(value)
            return value

    def refuse(self, reason: str, at: int | None = None) -> NoReturn:
        """Raise for a file that is not JSON, and say from where on."""
        at = self._at if at is None else at
        if reason.startswith("Invalid control character"):
            reason = r"a line break or tab inside a text, which is written \n or \t"
        line = self.line + self._text.count("\n", self._at, at)
        around = self._text[max(0, at - 20) : at + 20]
        raise DataError(
            f"{self.name}:{line}: not JSON: {reason}, near {around!r}. The rows before it are "
            "fine; the rows after it cannot be located. Repair this place. (In a .jsonl file, with "
            "one row per line, data.bad_rows: skip can leave out a broken row.)"
        )

    def rest(self) -> str:
        """Return the part of the remaining text that is in memory."""
        return self._text[self._at :]

    def _num_brackets(self, start: int, end: int) -> int:
        return self._text.count("[", start, end) + self._text.count("{", start, end)

    def _go_to(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _grow(self) -> bool:
        """Read at least as much again as is left, so that a long row is not parsed often."""
        rest = self._text[self._at :]
        parts, wanted = [rest], max(1, len(rest))
        while wanted > 0 and (block := next(self._blocks, "")):
            parts.append(block)
            wanted -= len(block)
        if len(parts) == 1:
            return False  # the text is unchanged, and so is every position in it
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
        """Consume a value with NaN; False if more of it had to be read first."""
        try:
            _, end = LENIENT.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            if self._grow():
                return False
            self.refuse(error.msg, error.pos)
        except ValueError as error:  # an integer of thousands of digits
            self.refuse(str(error))
        except RecursionError:
            self.refuse("nested too deeply")
        self.skipped = self._text[self._at : end]
        self._go_to(end)
        return True

    def bad_field(self, error: ValueError, prefix: str = "") -> str:
        """Return the field of the skipped value that has the NaN, or is there twice."""
        if isinstance(error, RepeatedKeyError):
            return error.key
        return non_finite_field(LENIENT.decode(self.skipped), prefix)


class _BreaksOffError(Exception):
    """The file ends in the middle of a value. Never leaves this module."""


def _text_blocks(path: Path, name: str) -> Iterator[str]:
    """Decode a file block by block.

    Raises:
        DataError: not UTF-8: names line and byte.
    """
    import codecs

    rest, offset, line = b"", 0, 1
    is_utf8 = False  # so far: some character that is not ASCII was read
    with open_data_file(path, name) as file:
        while block := file.read(BLOCK_BYTES):
            data = rest + block
            if offset == 0 and data.startswith(codecs.BOM_UTF8):
                data, offset = data[3:], 3
            try:
                text, used = codecs.utf_8_decode(data, "strict", False)
            except UnicodeDecodeError as error:
                line += data.count(b"\n", 0, error.start)
                start = data.rfind(b"\n", 0, error.start) + 1
                is_utf8 = is_utf8 or not data[: error.start].isascii()
                advice = encoding_advice(path, name, 0 if is_utf8 else offset + start)
                problem = not_utf8(data, error, offset + error.start, advice)
                raise DataError(f"{name}:{line}: {problem}") from None
            rest, offset = data[used:], offset + used
            line += text.count("\n")
            is_utf8 = is_utf8 or not text.isascii()
            if text:
                yield text
    # Bytes that are left begin a character, so the JSON is truncated too, and its reader reports
    # that.


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
            field = text.bad_field(error)
            on_bad(BadRow(text.name, line, field, str(error), excerpt(text.skipped)))
        else:
            if isinstance(value, dict):
                yield Row(value, text.name, line)
            elif (row := _as_row(value, text.name, line)) is not None:
                yield row
            else:
                on_bad(BadRow(text.name, line, "", _not_an_object(value), excerpt(repr(value))))
        if text.peek() == "]":
            text.take("]")
            return
        text.take(",")


def _report_break(text: _JsonText, on_bad: OnBad) -> None:
    """Report that the file is truncated: unlike other bad rows, this one is never skipped."""
    reason = (
        "the file breaks off here, in the middle of the row that begins on this line. "
        "The rows before it are fine. Write or download the file again."
    )
    if not text.peek():
        reason = (
            "the file breaks off here: the closing ']' is missing. "
            "The rows before are fine. Write or download the file again."
        )
    on_bad(BadRow(text.name, text.line, "", reason, excerpt(text.rest()), ends_file=True))


def _read_objects(path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Read consecutive objects, one row each."""
    text = _JsonText(path, name)
    try:
        while text.peek():
            if (row := _object(text, on_bad)) is not None:
                yield row
    except _BreaksOffError:
        _report_break(text, on_bad)


def _object(text: _JsonText, on_bad: OnBad) -> Row | None:
    """Read an object field by field; None if it is a bad row."""
    line = text.line
    fields: dict[str, Any] = {}
    bad: BadRow | None = None
    text.take("{")
    while text.peek() != "}":
        if fields:
            text.take(",")
        key = text.key()
        text.peek()
        before = fields.setdefault(key, _NOTHING)
        try:
            fields[key] = text.value()
            if before is not _NOTHING:
                check_repeated(key, fields[key], before)
        except ValueError as error:
            field = text.bad_field(error, key)
            bad = BadRow(text.name, line, field, str(error), excerpt(text.skipped))
    text.take("}")
    if bad is not None:
        on_bad(bad)
        return None
    return Row(fields, text.name, line)


_NOTHING = object()


def read_rows_under(wanted: str, path: Path, name: str, on_bad: OnBad) -> Iterator[Row]:
    """Read the rows that are under one key of a file that is one object."""
    text = _JsonText(path, name)
    try:
        text.take("{")
        is_first = True
        while text.peek() != "}":
            if not is_first:
                text.take(",")
            is_first = False
            key = text.key()
            if key == wanted and text.peek() == "[":
                yield from _array_items(text, on_bad)
            else:
                text.skip()
        text.take("}")
    except _BreaksOffError:
        _report_break(text, on_bad)
