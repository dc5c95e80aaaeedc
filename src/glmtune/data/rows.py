"""A row, a row that cannot be used, and the error that names it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from glmtune.errors import DataError

EXCERPT_CHARS = 120


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


def raise_bad_row(bad: BadRow) -> NoReturn:
    raise RowError(bad)


def excerpt(text: str) -> str:
    """The beginning of a text, fit to be printed and written to a UTF-8 file."""
    start = text[: EXCERPT_CHARS + 1].strip().encode(errors="backslashreplace").decode()
    return start if len(text) <= EXCERPT_CHARS else start[:EXCERPT_CHARS] + "..."
