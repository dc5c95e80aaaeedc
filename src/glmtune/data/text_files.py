"""The bytes and lines of data files: decompression and encodings."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from glmtune.data.encodings import (
    conversion_advice,
    guess_encoding,
    is_damaged_utf8,
    wide_encoding,
)
from glmtune.errors import DataError

BLOCK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16  # of a file that is not UTF-8, to guess its encoding
FEW_BYTES = 8  # that are not ASCII; fewer are damage rather than another encoding
UNKNOWN_ENCODING = (
    "The encoding of the file was not recognized. Open it in the program that wrote it, and save "
    "it as UTF-8."
)
MAX_HEAD_BYTES = 64 << 20  # of a first line, which may be the complete file
ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")

_KINDS = (  # of files whose name says something else, by their first bytes
    (b"\x1f\x8b", "It is compressed by gzip: let its name end with .gz, as in rows.json.gz."),
    (b"\x28\xb5\x2f\xfd", "It is compressed by zstd: let its name end with .zst."),
    (b"PK\x03\x04", "It is a ZIP archive or an Excel file: unpack it, or save it as CSV in UTF-8."),
    (b"PAR1", "It is a Parquet file: let its name end with .parquet."),
    (b"ARROW1", "It is an Arrow file: save it as Parquet, or give the folder of save_to_disk."),
)
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def ending_of(path: Path) -> tuple[str, str]:
    """Return the ending for the kind of file, "" if unknown, and that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    return (kind if kind in ENDINGS else "", compression)


@contextlib.contextmanager
def open_data_file(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacking .gz and .zst.

    Raises:
        DataError: also while reading, if the file is damaged or truncated.
    """
    compression = _COMPRESSIONS.get(ending_of(path)[1])
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


def first_line(path: Path, name: str, max_bytes: int = MAX_HEAD_BYTES) -> bytes:
    """Return the first line that is not blank, without a byte order mark, or its beginning.

    Args:
        path, name: of the file.
        max_bytes: of the line.

    Raises:
        DataError: the file is UTF-16 or UTF-32, or cannot be read.
    """
    with open_data_file(path, name) as file:
        is_first = True
        while line := file.readline(max_bytes):
            if is_first:
                refuse_other(line, name)
                line = line.removeprefix(b"\xef\xbb\xbf")
                is_first = False
            if line := line.strip(b" \t\r\n"):
                return line
    return b""


def numbered_lines(path: Path, name: str) -> Iterator[tuple[int, str, str]]:
    r"""Yield the lines of a file: number, text with its line ending, problem of its bytes.

    Only \n ends a line: JSON strings may contain other Unicode line separators. The problem is
    "" for a valid line; otherwise it is a fault of the check "encoding".
    """
    offset = 0
    advice: str | None = None
    is_utf8 = False  # so far: some character that is not ASCII was read
    with open_data_file(path, name) as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if number == 1:
                refuse_other(line, name)
                line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
            try:
                text, problem = line.decode(), ""
                is_utf8 = is_utf8 or not text.isascii()
            except UnicodeDecodeError as error:
                text = line.decode(errors="surrogateescape")
                at = start + error.start + (offset - start - len(line))
                if advice is None:  # the same for all lines of a file
                    advice = encoding_advice(path, name, 0 if is_utf8 else start)
                problem = not_utf8(line, error, at, advice)
            if "\0" in text:
                problem = (
                    f"byte {start + line.index(0)} is a null byte: the file was damaged, or is "
                    "not text. Write it again, or take the null bytes out."
                )
            yield number, text, problem


def refuse_other(head: bytes, name: str) -> None:
    """Raise for a file that begins like another kind of file, or like UTF-16 or UTF-32.

    Raises:
        DataError: explains how to convert the file, or which name it needs.
    """
    for mark, remedy in _KINDS:
        if head.startswith(mark):
            raise DataError(f"{name}: is not a text file. {remedy}")
    if encoding := wide_encoding(head):
        advice = conversion_advice(encoding, name, head[:MAX_HEAD_BYTES])
        raise DataError(f"{name}: looks like {encoding}, expected UTF-8. {advice}")


def encoding_advice(path: Path, name: str, start: int) -> str:
    """Guess the encoding of a file that is not UTF-8, and say how to convert it.

    Args:
        path, name: of the file.
        start: a byte where a character begins, at or before the first one that is not UTF-8.

    Returns:
        A sentence; "" if no encoding fits, or the file is UTF-8 with some damage.
    """
    with open_data_file(path, name) as file:
        skipped = 0
        while skipped < start and (block := file.read(min(BLOCK_BYTES, start - skipped))):
            skipped += len(block)
        sample = file.read(SAMPLE_BYTES)
    encoding = guess_encoding(sample)
    if not encoding:
        is_other = sum(byte > 0x7F for byte in sample) >= FEW_BYTES and not is_damaged_utf8(sample)
        return UNKNOWN_ENCODING if is_other else ""
    return f"It looks like {encoding}. {conversion_advice(encoding, name)}"


def not_utf8(line: bytes, error: UnicodeDecodeError, offset: int, advice: str) -> str:
    """Describe which byte is wrong, and what to do.

    Args:
        line: the line, or the part of the file, with the byte.
        error: of decoding it.
        offset: of the byte in the file.
        advice: from `encoding_advice`.
    """
    where = f"byte {offset} (0x{line[error.start]:02x}) is not UTF-8"
    if advice:
        return f"{where}. {advice}"
    if error.reason == "unexpected end of data" and not line.endswith(b"\n"):
        return f"{where}: the file breaks off inside a character. Write it again."
    return f"{where}. Repair that character, or leave such rows out with data.bad_rows: skip."
