"""The bytes and lines of data files: decompression and encodings."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from glmtune.errors import DataError

BLOCK_BYTES = 1 << 20
ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")

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


def numbered_lines(path: Path, name: str) -> Iterator[tuple[int, str, str]]:
    r"""Yield the lines of a file: number, text with its line ending, problem of its bytes.

    Only \n ends a line: JSON strings may contain other Unicode line separators. The problem is
    "" for a valid line; otherwise it is a fault of the check "encoding".
    """
    offset = 0
    with open_data_file(path, name) as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if number == 1:
                refuse_utf16(line, name)
                line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
            try:
                text, problem = line.decode(), ""
            except UnicodeDecodeError as error:
                text = line.decode(errors="surrogateescape")
                at = start + error.start + (offset - start - len(line))
                problem = not_utf8(line, error, at, path)
            if "\0" in text:
                problem = (
                    f"byte {start + line.index(0)} is a null byte: the file was damaged, or is "
                    "not text. Write it again, or take the null bytes out."
                )
            yield number, text, problem


def refuse_utf16(head: bytes, name: str) -> None:
    """Raise for a file that begins like UTF-16.

    Raises:
        DataError: the file is UTF-16; explains how to convert it.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:2].count(0) == 1:
        raise DataError(
            f"{name}: looks like UTF-16, expected UTF-8: convert it with "
            f"`iconv -f UTF-16 -t UTF-8 {name} > utf8-{Path(name).name}`."
        )


def not_utf8(line: bytes, error: UnicodeDecodeError, offset: int, path: Path) -> str:
    """Describe which byte is wrong, and which encoding the file probably has.

    GBK is only suggested if everything before the byte is ASCII: otherwise the file is UTF-8
    and damaged.
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
    return f"{where}. Repair that character, or leave such rows out with data.bad_rows: skip."
