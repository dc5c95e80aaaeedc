"""A row, a row that cannot be used, and the error that names it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from glmtune.errors import DataError, printable
from glmtune.recipe.choices import BadRows

EXCERPT_CHARS = 120
# Of a file of JSON: half of a surrogate pair is written as JSON writes it, \ud83d.
ESCAPED = "backslashreplace"

# Ids of the lint checks that the readers of rows apply themselves.
RowCheck = Literal[
    "unreadable", "role-order", "empty-answer", "same-answers", "no-label", "encoding"
]


class Row(dict[str, Any]):
    """The fields of one row, and where it comes from.

    Attributes:
        file: the path as the user gave it, or the hub id.
        line: the line it starts on, counted from 1; for Parquet and Arrow the row number,
            counted from 1.
        source: the number of its source, counted from 0; 0 outside a `Dataset`.
    """

    source = 0

    def __init__(self, fields: dict[str, Any], file: str, line: int) -> None:
        super().__init__(fields)
        self.file = file
        self.line = line


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why.

    Attributes:
        file, line: as in `Row`.
        field: the field at fault, "" when it is the entire row.
        reason: what was found, what was expected, what to do.
        excerpt: the beginning of the row.
        check: the id of the lint check that it fails.
        ends_file: whether the file breaks off here, so that the rows after it are missing.
    """

    file: str
    line: int
    field: str
    reason: str
    excerpt: str
    check: RowCheck = "unreadable"
    ends_file: bool = False

    def __post_init__(self) -> None:
        """Escape halves of surrogate pairs, which no file and no terminal accepts."""
        for name in ("field", "reason", "excerpt"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"

    @property
    def message(self) -> str:
        """The field and the reason, without the place."""
        field = f"field {self.field!r}: " if self.field else ""
        return f"{field}{self.reason}"

    def can_be_skipped(self, policy: BadRows) -> bool:
        """Whether reading continues after this row.

        A file that breaks off is never skipped: the number of missing rows is unknown.

        Args:
            policy: `data.bad_rows`.
        """
        return policy == "skip" and not self.ends_file


class RowError(DataError):
    """One row cannot be used; others of its file may be fine."""

    def __init__(self, bad: BadRow) -> None:
        super().__init__(str(bad))
        self.bad = bad


OnBad = Callable[[BadRow], None]


def raise_bad_row(bad: BadRow) -> NoReturn:
    """Stop at a bad row."""
    raise RowError(bad)


def excerpt(text: str) -> str:
    """Return the beginning of a text, safe to print and to write to a UTF-8 file."""
    start = printable(text[: EXCERPT_CHARS + 1].strip())
    return start if len(text) <= EXCERPT_CHARS else start[:EXCERPT_CHARS] + "..."


def row_excerpt(row: Row) -> str:
    """Return the beginning of a row, as JSON."""
    return excerpt(json.dumps(row, ensure_ascii=False, default=str))
