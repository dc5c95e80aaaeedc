"""Find the format of a file by the columns of its first rows, and rename columns to ours.

A column counts when one of the rows at hand has it: a file may begin with a row that lacks an
optional column, or an answer.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from glmtune.data.formats.format import Format
from glmtune.data.formats.guess import explain_columns
from glmtune.data.formats.messages import items
from glmtune.data.formats.pairs import ANSWER_OF
from glmtune.data.formats.table import ANSWERS, FORMATS, TEXTS, known_formats
from glmtune.data.rows import Row, RowError
from glmtune.errors import DataError


def detect(
    rows: Sequence[Row],
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    needs_answer: bool = True,
) -> Format:
    """Find the format of a file by the columns of its first rows.

    Args:
        rows: the first rows of the file, at least one.
        name: the format, if the user names it; then only the columns are checked.
        columns: our field -> their column.
        needs_answer: whether there must be a column of answers. If not, a column of text alone
            is a format too: each text is a question.

    Raises:
        DataError: no format fits, or more than one; lists the columns and the formats.
    """
    columns = columns or {}
    _check_columns(columns, rows, () if needs_answer else ANSWERS)
    renamed = [rename(row, columns) for row in rows]
    if name is not None:
        fields = {field for row in renamed for field in row}
        format = _named(name, fields if needs_answer else fields | ANSWERS, rows)
    else:
        format = _found(renamed, rows, needs_answer=needs_answer)
    _check_read(columns, format, rows[0])
    return format


def _found(renamed: Sequence[Row], rows: Sequence[Row], *, needs_answer: bool) -> Format:
    """Find the format by the first row that fits one; a pair, if any row is a pair."""
    fitting = _first_fitting([_fitting(row) for row in renamed])
    if not fitting and not needs_answer:
        fitting = _first_fitting([_fitting_questions(row) for row in renamed])
    if len(fitting) > 1 and all(format.required == ("conversations",) for format in fitting):
        return _conversation_style(renamed)
    if len(fitting) == 1:
        return fitting[0]
    names = " and ".join(format.name for format in fitting)
    problem = f"these fit more than one format ({names})" if fitting else "no known format"
    is_text = all(set(row) == {"text"} for row in renamed)
    hint = " A column of text alone is for pre-training." if is_text else explain_columns(rows)
    if not needs_answer:
        hint += " The column of the answer may be missing; a column 'text' alone is questions, too."
    raise DataError(
        f"{rows[0].file}:{rows[0].line}: the columns are {_listed(rows)}: {problem}.{hint} "
        f"Known are {known_formats()}. Name one with data.format, or say which column is what "
        "with data.columns, as in data.columns: {instruction: their_column}."
    )


def _first_fitting(of_rows: Sequence[list[Format]]) -> list[Format]:
    pairs = (fitting for fitting in of_rows if any(format.is_pair for format in fitting))
    return next(pairs, None) or next((fitting for fitting in of_rows if fitting), [])


def _fitting(row: Row) -> list[Format]:
    fields = set(row)
    fitting = [format for format in FORMATS.values() if format.fits(fields, row)]
    return [format for format in fitting if format.is_pair] or _lowest_rank(fitting)


def _fitting_questions(row: Row) -> list[Format]:
    """Find the formats that fit a row if it need not have an answer."""
    fields = set(row)
    known = (*FORMATS.values(), TEXTS)
    return _lowest_rank([each for each in known if each.fits(fields | {each.answer}, row)])


def _lowest_rank(formats: list[Format]) -> list[Format]:
    lowest = min((format.rank for format in formats), default=0)
    return [format for format in formats if format.rank == lowest]


def _conversation_style(rows: Sequence[Row]) -> Format:
    """Detect `from` and `value`, or `role` and `content`, by the first row with a message."""
    for row in rows:
        for _, message in _readable_messages(row):
            if "from" in message:
                return FORMATS["sharegpt"]
            if "role" in message:
                return FORMATS["chatglm3"]
    raise DataError(
        f"{rows[0].file}:{rows[0].line}: no message in 'conversations' has 'from' (sharegpt) or "
        "'role' (chatglm3). Name the format with data.format."
    )


def _readable_messages(row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the messages of a row; none if they cannot be read, which `convert` will report."""
    try:
        return list(items(row, "conversations"))
    except RowError:
        return []


# --- Columns ------------------------------------------------------------------------------


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """Rename columns to our names.

    Args:
        row: as in the file.
        columns: our field -> their column.
    """
    if not columns:
        return row
    theirs = set(columns.values())
    fields = {name: value for name, value in row.items() if name not in theirs}
    fields |= {ours: row[column] for ours, column in columns.items() if column in row}
    return Row(fields, row.file, row.line)


def fields_of(format: Format) -> tuple[str, ...]:
    """Return the columns that a format reads; those of a pair include its question's."""
    own = (*format.required, *format.optional)
    if not format.is_pair:
        return own
    of_sides = [each for each in FORMATS.values() if not each.is_pair and _is_side(each)]
    read = [name for each in of_sides for name in (*each.required, *each.optional)]
    return tuple(dict.fromkeys([*own, *read]))


def _is_side(format: Format) -> bool:
    return bool(format.style) or ANSWER_OF.get(format.required[0]) == format.answer


def _check_columns(
    columns: Mapping[str, str], rows: Sequence[Row], may_be_missing: Collection[str]
) -> None:
    known = sorted({name for f in FORMATS.values() for name in (*f.required, *f.optional)})
    for ours, theirs in columns.items():
        if ours not in known:
            near = difflib.get_close_matches(ours, known, n=1)
            raise DataError(
                f"data.columns names our field {ours!r}, expected one of {', '.join(known)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
        if ours not in may_be_missing and not any(theirs in row for row in rows):
            raise DataError(
                f"{rows[0].file}:{rows[0].line}: data.columns takes {ours!r} from column "
                f"{theirs!r}, but the columns are {_listed(rows)}. Correct the name"
                + (
                    "."
                    if len(rows) == 1
                    else "; where only later rows have it, put one of them first."
                )
            )


def _check_read(columns: Mapping[str, str], format: Format, row: Row) -> None:
    """Refuse a column that is mapped to a field which the format does not read."""
    if not columns:
        return
    read = fields_of(format)
    for ours, theirs in columns.items():
        if ours not in read:
            raise DataError(
                f"{row.file}:{row.line}: data.columns takes {ours!r} from column {theirs!r}, but "
                f"format {format.name} does not read {ours!r}. It reads {', '.join(read)}. Map "
                f"{theirs!r} to one of these, or take it out of data.columns."
            )


def _named(name: str, fields: set[str], rows: Sequence[Row]) -> Format:
    format = FORMATS.get(name)
    if format is None:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"data.format {name!r} is not known.{hint} Known are {known_formats()}.")
    missing = [field for field in format.required if field not in fields]
    if missing:
        raise DataError(
            f"{rows[0].file}:{rows[0].line}: format {name} needs the columns "
            f"{', '.join(format.required)}; {', '.join(missing)} is not among {_listed(rows)}. "
            f"Say which column it is: data.columns: {{{missing[0]}: their_column}}."
        )
    return format


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(map(repr, dict.fromkeys(name for row in rows for name in row))) or "none"
