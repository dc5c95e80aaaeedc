"""Say what columns that fit no format may be, and how to read them or write them again."""

import json
from collections.abc import Mapping, Sequence

from glmtune.data.formats.format import Format
from glmtune.data.formats.table import FORMATS
from glmtune.data.rows import Row

_MESSAGE = (("role", "content"), ("from", "value"))


def explain_columns(rows: Sequence[Row]) -> str:
    """Return a sentence, after a space, about columns that fit no format; "" if nothing is known.

    Args:
        rows: the first rows of the file, with our names of columns.
    """
    first = rows[0]
    if any(set(keys) <= first.keys() for keys in _MESSAGE):
        return (
            " A row here is a message, and a row is a dialogue: put the messages of each dialogue "
            'into a list, {"messages": [...]}.'
        )
    if len(rows) == 1 and len(first) > 1 and all(isinstance(v, dict) for v in first.values()):
        return (
            " The file has one object with a key for each row or column, and rows are a list: in "
            "Python, pandas.DataFrame.from_dict(data, orient='index').to_json(path, "
            "orient='records', lines=True, force_ascii=False), or without orient='index' for "
            "columns."
        )
    if spelled := _other_spelling(rows):
        ours = ", ".join(f"{name}: {_quoted(column)}" for name, column in spelled.items())
        return f" Only the spelling differs: data.columns: {{{ours}}}."
    return ""


def _other_spelling(rows: Sequence[Row]) -> Mapping[str, str]:
    """Find a format whose columns are there in capitals or with white space: ours -> theirs."""
    columns = {name.strip().lower(): name for row in rows for name in row}
    for format in FORMATS.values():
        names = (*format.required, *format.optional)
        if _is_there(format, columns):
            return {n: columns[n] for n in names if n in columns and columns[n] != n}
    return {}


def _is_there(format: Format, columns: Mapping[str, str]) -> bool:
    return columns.keys() >= set(format.required) and format.looks is None


def _quoted(column: str) -> str:
    return column if column.isidentifier() else json.dumps(column, ensure_ascii=False)
