"""Read single values of a row, or say which one is wrong, where, and what to do."""

from typing import Any

from glmtune.data.json_values import parse_json
from glmtune.data.rows import BadRow, Row, RowCheck, RowError, excerpt, row_excerpt
from glmtune.errors import NotUnicodeError, TemplateError, json_kind

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that say nothing, as a CSV file or Parquet has them in the columns of other rows."""


def bad(row: Row, field: str, reason: str, check: RowCheck = "unreadable") -> RowError:
    """Return the error of a row that cannot be used."""
    return RowError(BadRow(row.file, row.line, field, reason, row_excerpt(row), check))


def cannot_render(row: Row, field: str, error: TemplateError) -> RowError:
    """Name a row whose messages no template renders."""
    check: RowCheck = "encoding" if isinstance(error, NotUnicodeError) else "unreadable"
    return bad(row, field, str(error), check)


def empty_answer(row: Row, where: str) -> RowError:
    """Return the error of an answer without text."""
    reason = "the answer is empty. Write one, or take the turn out."
    return bad(row, where, reason, "empty-answer")


def text(row: Row, field: str, *, optional: bool = False) -> str:
    """Return the text of a field; "" for an optional one that is missing.

    Raises:
        RowError: the value is not text.
    """
    value = row.get(field)
    if value is None and optional:
        return ""
    return value if isinstance(value, str) else checked_text(row, field, value)


def checked_text(row: Row, where: str, value: Any) -> str:
    """Return a value that must be text.

    Raises:
        RowError: it is not; the reason says how to make it text.
    """
    if isinstance(value, str):
        return value
    if value is None:
        reason = (
            "the field is missing or null, expected text. Fill it in, or take the row out; rows of "
            "another format go into a file of their own."
        )
        raise bad(row, where, reason)
    raise bad(row, where, f"got {kind(value)}, expected text. {_as_text(value)}")


def _as_text(value: Any) -> str:
    match value:
        case bool() | int() | float():
            return "Put it in quotes."
        case list() | tuple():
            return "Join its items into one text, or write a row for each item."
        case dict():
            return (
                "Write it as one text, for example as its JSON in quotes: "
                "json.dumps(value, ensure_ascii=False) in Python."
            )
    return "Convert the column to text."


def maybe_json(row: Row, where: str, value: Any, *, must_parse: bool = False) -> Any:
    """Parse a value that may be JSON text, as it must be in CSV.

    Raises:
        RowError: the text is not JSON.
    """
    if not isinstance(value, str) or not (value.strip() or must_parse):
        return None if value == "" else value
    try:
        return parse_json(value)
    except ValueError as error:
        reason = (
            f"its text is not valid JSON: {str(error).rstrip('.')}. Write the value as JSON "
            "(json.dumps in Python), or take the row out."
        )
        raise bad(row, where, reason) from None


def kind(value: Any) -> str:
    """Name a value for an error, as in "the number 3"."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {excerpt(value)!r}"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
    return json_kind(value)
