"""Convert rows to conversations: for training, as pairs, and split into prompt and answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from glmtune.conversation import Conversation, Message, check_turns
from glmtune.data.formats.detection import detect, rename
from glmtune.data.formats.format import Format
from glmtune.data.formats.keys import LABELS, check_keys, is_marked_bad, read_label
from glmtune.data.formats.pairs import sides
from glmtune.data.formats.roles import Roles
from glmtune.data.formats.values import bad, cannot_render
from glmtune.data.rows import Row, RowError
from glmtune.errors import DataError, TemplateError
from glmtune.tool_calls import check_tool_name


def convert(
    row: Row,
    format: Format,
    columns: Mapping[str, str] | None = None,
    roles: Roles | None = None,
) -> Conversation:
    """Read one row.

    Args:
        row: a row of the format.
        format: from `detect`, or one of `FORMATS`.
        columns: our field -> their column.
        roles: their role -> ours: one of user, assistant, system, observation, function_call.

    Raises:
        RowError: the row has no answer, an unknown role, a wrong order of turns, ...
    """
    messages = _read_row(row, format, columns, roles)
    if not any(message.role == "assistant" for message in messages):
        reason = "no turn is an answer, so there is nothing to learn."
        raise bad(row, format.required[-1], reason, "no-label")
    return Conversation(messages)


def convert_pair(
    row: Row,
    format: Format,
    columns: Mapping[str, str] | None = None,
    roles: Roles | None = None,
) -> tuple[Conversation, Conversation]:
    """Read one row with a better answer and a worse one; only the last answer of each is learned.

    Args:
        row, format, columns, roles: as for `convert`.

    Raises:
        DataError: the format has no two answers.
        RowError: as for `convert`; or an answer is missing, the two have different questions, or
            are the same.
    """
    if not format.is_pair:
        raise DataError(
            f"{row.file}:{row.line}: format {format.name} has one answer, and preference.stage=dpo "
            "needs a better and a worse one: columns chosen and rejected, or rejected_response. "
            "Rows with one answer and a label are for preference.stage=kto."
        )
    named = rename(row, columns or {})
    better, worse = (
        _convert_side(side, row, name, roles)
        for side, name in zip(
            sides(named, format.required), ("chosen", format.required[-1]), strict=True
        )
    )
    asked = max((i for i, each in enumerate(better) if each.role != "assistant"), default=-1) + 1
    if worse[:asked] != better[:asked] or any(m.role != "assistant" for m in worse[asked:]):
        raise bad(row, "rejected", "its question is not that of the chosen answer.")
    if better == worse:
        reason = "it is the chosen answer again. Take the row out."
        raise bad(row, "rejected", reason, "same-answers")
    _refuse_weights(row, format, better[asked:] + worse[asked:])
    question = tuple(replace(message, is_learned=False) for message in better[:asked])
    return Conversation(question + better[asked:]), Conversation(question + worse[asked:])


def convert_labeled(
    row: Row,
    format: Format,
    columns: Mapping[str, str] | None = None,
    roles: Roles | None = None,
) -> Conversation:
    """Read one row with an answer and a label that says whether it is a good one.

    Only the last answer is learned, since the label is about that one.

    Args:
        row, format, columns, roles: as for `convert`.

    Raises:
        DataError: the format has two answers.
        RowError: as for `convert`; or there is no label.
    """
    if format.is_pair:
        raise DataError(
            f"{row.file}:{row.line}: format {format.name} has two answers, and "
            "preference.stage=kto needs one with a label. Use preference.stage=dpo for these rows."
        )
    is_good = read_label(rename(row, columns or {}))
    messages = _read_row(row, format, columns, roles, learns_bad=True)
    if not any(message.role == "assistant" for message in messages):
        reason = "no turn is an answer, so there is nothing to learn."
        raise bad(row, format.required[-1], reason, "no-label")
    conversation = without_history(Conversation(messages))
    _refuse_weights(row, format, conversation.messages)
    return replace(conversation, is_good=is_good)


def _refuse_weights(row: Row, format: Format, messages: Sequence[Message]) -> None:
    """Refuse weights of answers where they are compared as wholes."""
    for message in messages:
        if isinstance(message.is_learned, float):
            reason = (
                f"an answer has the weight {message.is_learned:g}, which only preference.stage=sft "
                "knows. Take the weight out."
            )
            raise bad(row, format.required[-1], reason)


def _convert_side(side: Row, row: Row, name: str, roles: Roles | None) -> tuple[Message, ...]:
    """Read one side of a pair; an error names a column that the row itself has."""
    try:
        return convert(side, _side_format(side, row, name), None, roles).messages
    except RowError as error:
        if error.bad.field in row:
            raise
        raise bad(row, name, error.bad.reason, error.bad.check) from error


def _side_format(side: Row, row: Row, name: str) -> Format:
    """Find the format of one side of a pair; a side without one makes the row a bad one."""
    try:
        return detect([side])
    except RowError:
        raise
    except DataError:
        columns = ", ".join(map(repr, side))
        reason = (
            f"with this answer the columns are {columns}, which are of no format or of several. "
            "Expected one question: instruction, prompt, query, question, or messages."
        )
        raise bad(row, name, reason) from None


def convert_sides(
    row: Row,
    format: Format,
    columns: Mapping[str, str] | None = None,
    roles: Roles | None = None,
    *,
    pairs: bool | None = False,
    needs_label: bool = False,
) -> tuple[Conversation, ...]:
    """Read one row as what training sees of it: one conversation, or the two sides of a pair.

    Args:
        row, format, columns, roles: as for `convert`.
        pairs: whether it is a pair; None: if its format has two answers.
        needs_label: whether it has one answer and a label.

    Raises:
        DataError, RowError: as for `convert_pair` and `convert_labeled`.
    """
    if needs_label:
        return (convert_labeled(row, format, columns, roles),)
    if pairs or (pairs is None and format.is_pair):
        return convert_pair(row, format, columns, roles)
    return (convert(row, format, columns, roles),)


def split_answer(
    row: Row,
    format: Format,
    columns: Mapping[str, str] | None = None,
    roles: Roles | None = None,
) -> tuple[Conversation, tuple[Message, ...]]:
    """Split one row into the prompt and its last answer, which may be missing.

    Args:
        row: a row of the format, which may lack an answer.
        format: from `detect` with `needs_answer=False`.
        columns: our field -> their column.
        roles: their role -> ours, as for `convert`.

    Raises:
        RowError: as for `convert`, or nothing is asked.
    """
    is_asked = False
    if format.answer:
        column = (columns or {}).get(format.answer, format.answer)
        is_asked = row.get(column) in (None, "")
        if is_asked:  # read it as if it had an answer
            row = Row({**row, column: "-"}, row.file, row.line)
    messages = _read_row(row, format, columns, roles)
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    if not end or messages[end - 1].role == "system":
        raise bad(row, format.required[0], "no turn is a question, so there is nothing to answer.")
    is_reference = not is_asked and not is_marked_bad(rename(row, columns or {}))
    return Conversation(messages[:end]), messages[end:] if is_reference else ()


def _read_row(
    row: Row,
    format: Format,
    columns: Mapping[str, str] | None,
    roles: Roles | None,
    *,
    learns_bad: bool = False,
) -> tuple[Message, ...]:
    """Convert a row to messages, and check its keys, their order and characters.

    An answer that is marked as bad is not learned, unless `learns_bad`.
    """
    if columns:
        row = rename(row, columns)
    if format.is_pair:
        better = sides(row, format.required)[0]
        row, format = better, _side_format(better, row, format.required[0])
    check_keys(row, format)
    assert format.read is not None
    messages = tuple(format.read(row, roles or {}))
    _check_tool_names(row, format, messages)
    if not learns_bad and not LABELS.isdisjoint(row) and is_marked_bad(row):
        messages = tuple(replace(message, is_learned=False) for message in messages)
    try:
        check_turns(messages)
        _check_encodable(messages)
    except TemplateError as error:
        turns = ", ".join(message.role for message in messages)
        reason = f"{error} (The turns, from 0: {turns}.)"
        raise bad(row, format.required[-1], reason, "role-order") from None
    except UnicodeEncodeError as error:
        what = f"half of a surrogate pair, {error.object[error.start]!r}, is not a character."
        raise bad(row, "", f"{what} Write the text again as UTF-8.", "encoding") from None
    return messages


def _check_tool_names(row: Row, format: Format, messages: Sequence[Message]) -> None:
    """Refuse to learn a call of a tool whose name a reply could not repeat."""
    for message in messages:
        if message.metadata:
            try:
                check_tool_name(message.metadata)
            except TemplateError as error:
                raise cannot_render(row, format.required[-1], error) from None


def _check_encodable(messages: Sequence[Message]) -> None:
    """Refuse what no tokenizer accepts: half of a surrogate pair, which JSON can contain."""
    for message in messages:
        message.content.encode()
        message.metadata.encode()
        if message.tools:
            json.dumps(message.tools, ensure_ascii=False).encode()


def without_history(conversation: Conversation) -> Conversation:
    """Return a conversation of which only the last answer is learned.

    A remark and the calls right after it are one answer.
    """
    messages = conversation.messages
    last = len(messages) - 1
    while last >= 0 and messages[last].role != "assistant":
        last -= 1
    first = last
    while first > 0 and messages[first - 1].role == "assistant":
        first -= 1
    if not any(message.role == "assistant" for message in messages[:first]):
        return conversation
    return replace(
        conversation,
        messages=tuple(
            replace(message, is_learned=False) if index < first else message
            for index, message in enumerate(messages)
        ),
    )
