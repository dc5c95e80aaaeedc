"""A row in one of the common formats -> a conversation.

    alpaca           {"instruction": ..., "input": ..., "output": ..., "history": [[q, a]]}
    prompt_response  {"prompt": ..., "response": ...}; likewise query_response,
    ...              question_answer and content_summary (AdvertiseGen)
    sharegpt         {"conversations": [{"from": "human", "value": ...}], "tools": ...}
    openai           {"messages": [{"role": "user", "content": ...}], "tools": ...}
    chatglm3         {"conversations": [{"role": "user", "content": ...}], "tools": ...}
    chosen_rejected  any of these with a better answer and a worse one: {"prompt": ...,
    ...              "chosen": ..., "rejected": ...}; or with a column rejected_response

The format of a file is found by its columns, or given by name; `columns` says which of their
columns is our field, `roles` which of their roles is ours. Nothing else is guessed: a number
where text is expected is refused, since 1, 1.0 and "1" are different texts.

For tools all formats share one path: OpenAI's and ShareGPT's messages are read by
`conversation.read_messages`, as a program's messages are at inference, while `chatglm3` keeps
the layout of the official preprocessor (spec section 9.2).
"""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from glmtune.conversation import (
    ROLES,
    TOOLS_PROMPT,
    Conversation,
    Message,
    Role,
    check_tool_name,
    check_turns,
    read_messages,
    render_tool_call,
)
from glmtune.data.json_rows import parse_json
from glmtune.data.rows import BadRow, Row, RowCheck, RowError, excerpt, row_excerpt
from glmtune.errors import DataError, NotUnicodeError, TemplateError

Roles = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a row.

    Attributes:
        name: as in `data.format`.
        required: the columns by which it is detected.
        optional: columns that it also reads.
        read: converts one row to messages; the roles are the user's own `roles`.
        answer: the column of the answer; "" if it is one of the messages.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Row, Roles], Sequence[Message]]
    answer: str = ""


def detect(
    rows: Sequence[Row],
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    needs_answer: bool = True,
) -> Format:
    """Find the format of a file by the columns of its first row.

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
    _check_columns(columns, rows[0])
    fields = set(_rename(rows[0], columns))
    if name is not None:
        return _named(name, fields if needs_answer else fields | _ANSWERS, rows[0])
    fitting = [format for format in FORMATS.values() if fields.issuperset(format.required)]
    if not fitting and not needs_answer:
        known = (*FORMATS.values(), TEXTS)
        fitting = [each for each in known if (fields | {each.answer}).issuperset(each.required)]
    fitting = [format for format in fitting if format.name in PAIR_FORMATS] or fitting
    if len(fitting) > 1 and all(format.required == ("conversations",) for format in fitting):
        return _conversation_style([_rename(row, columns) for row in rows])
    if len(fitting) == 1:
        return fitting[0]
    names = " and ".join(format.name for format in fitting)
    problem = f"these fit more than one format ({names})" if fitting else "no known format"
    hint = " A column of text alone is for pre-training." if fields == {"text"} else ""
    if not needs_answer:
        hint = " The column of the answer may be missing; a column 'text' alone is questions, too."
    raise DataError(
        f"{rows[0].file}:{rows[0].line}: the columns are {_listed(rows[0])}: {problem}.{hint} "
        f"Known are {_known_formats()}. Name one with data.format, or say which column is what "
        "with data.columns, as in data.columns: {instruction: their_column}."
    )


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
        raise _bad(row, format.required[-1], reason, "no-label")
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
        RowError: as for `convert`; or the two have different questions, or are the same.
    """
    if format.name not in PAIR_FORMATS:
        raise DataError(
            f"{row.file}:{row.line}: format {format.name} has one answer, and preference.stage=dpo "
            "needs a better and a worse one: columns chosen and rejected, or rejected_response."
        )
    named = _rename(row, columns or {})
    second = "rejected_response" if "rejected_response" in named else "rejected"
    better, worse = (
        _convert_side(side, row, name, roles)
        for side, name in zip(sides(named), ("chosen", second), strict=True)
    )
    asked = max(i for i, message in enumerate(better) if message.role != "assistant") + 1
    if worse[:asked] != better[:asked] or any(m.role != "assistant" for m in worse[asked:]):
        raise _bad(row, "rejected", "its question is not that of the chosen answer.")
    if better == worse:
        reason = "it is the chosen answer again. Take the row out."
        raise _bad(row, "rejected", reason, "same-answers")
    question = tuple(replace(message, is_learned=False) for message in better[:asked])
    return Conversation(question + better[asked:]), Conversation(question + worse[asked:])


def _convert_side(side: Row, row: Row, name: str, roles: Roles | None) -> tuple[Message, ...]:
    """Read one side of a pair; an error names a column that the row itself has."""
    try:
        return convert(side, detect([side]), None, roles).messages
    except RowError as error:
        if error.bad.field in row:
            raise
        raise _bad(row, name, error.bad.reason, error.bad.check) from error


def convert_sides(
    row: Row,
    format: Format,
    columns: Mapping[str, str] | None = None,
    roles: Roles | None = None,
    *,
    pairs: bool | None = False,
) -> tuple[Conversation, ...]:
    """Read one row as what training sees of it: one conversation, or the two sides of a pair.

    Args:
        row, format, columns, roles: as for `convert`.
        pairs: whether it is a pair; None: if its format has two answers.

    Raises:
        DataError, RowError: as for `convert_pair`.
    """
    if pairs or (pairs is None and format.name in PAIR_FORMATS):
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
        raise _bad(row, format.required[0], "no turn is a question, so there is nothing to answer.")
    return Conversation(messages[:end]), () if is_asked else messages[end:]


def _read_row(
    row: Row, format: Format, columns: Mapping[str, str] | None, roles: Roles | None
) -> tuple[Message, ...]:
    """Convert a row to messages, and check their order and characters."""
    if columns:
        row = _rename(row, columns)
    messages = tuple(format.read(row, roles or {}))
    _check_tool_names(row, format, messages)
    try:
        check_turns(messages)
        _check_encodable(messages)
    except TemplateError as error:
        turns = ", ".join(message.role for message in messages)
        reason = f"{error} (The turns, from 0: {turns}.)"
        raise _bad(row, format.required[-1], reason, "role-order") from None
    except UnicodeEncodeError as error:
        what = f"half of a surrogate pair, {error.object[error.start]!r}, is not a character."
        raise _bad(row, "", f"{what} Write the text again as UTF-8.", "encoding") from None
    return messages


def check_roles(roles: Roles) -> None:
    """Refuse a mapping to roles that do not exist.

    Raises:
        DataError: names the role and those that exist.
    """
    for theirs, ours in roles.items():
        if ours not in _SHAREGPT_ROLES and ours not in ROLES:
            raise DataError(
                f"data.roles maps {theirs!r} to {ours!r}, expected one of "
                f"{', '.join(ROLES)}, function_call."
            )


# --- Questions and answers ----------------------------------------------------------------


def read_alpaca(row: Row, roles: Roles) -> Sequence[Message]:
    """Read `instruction` and `input`, joined by a newline, as the question."""
    instruction, extra = _text(row, "instruction"), _text(row, "input", optional=True)
    return _question_and_answer(row, "\n".join([instruction, extra]).strip(), "output")


def _pairs(name: str, question: str, answer: str) -> Format:
    """Make a format of two columns that are used as they are."""

    def read(row: Row, roles: Roles) -> Sequence[Message]:
        return _question_and_answer(row, _text(row, question), answer)

    return Format(name, (question, answer), ("history", "system"), read, answer)


def _question_and_answer(row: Row, question: str, answer_field: str) -> list[Message]:
    answer = _text(row, answer_field)
    if not answer.strip():
        reason = "the answer is empty. Write one, or take the row out."
        raise _bad(row, answer_field, reason, "empty-answer")
    messages = []
    if system := _text(row, "system", optional=True):
        messages.append(Message("system", system))
    if row.get("history"):
        for earlier_question, earlier_answer in _history(row):
            messages += [Message("user", earlier_question), Message("assistant", earlier_answer)]
    return [*messages, Message("user", question), Message("assistant", answer)]


def _history(row: Row) -> Iterator[tuple[str, str]]:
    """Yield earlier turns: a list of [question, answer], or the JSON text of one."""
    turns = _maybe_json(row, "history", row["history"]) or []
    if not isinstance(turns, list):
        raise _bad(row, "history", f"got {_kind(turns)}, expected [[question, answer]].")
    for index, pair in enumerate(turns):
        where = f"history[{index}]"
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise _bad(row, where, "expected a list of two texts, [question, answer].")
        question, answer = (_checked_text(row, where, text) for text in pair)
        if not answer.strip():
            raise _empty_answer(row, where)
        yield question, answer


# --- Messages -----------------------------------------------------------------------------

_SHAREGPT_ROLES: dict[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}
_OPENAI_ROLES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_CHATGLM3_ROLES: dict[str, str] = {**{role: role for role in ROLES}, "tool": "tool"}


def read_sharegpt(row: Row, roles: Roles) -> Sequence[Message]:
    """Read messages of `from` and `value`; that of a function_call is JSON: name and arguments."""
    messages: list[dict[str, Any]] = []
    if system := _text(row, "system", optional=True):
        messages.append({"role": "system", "content": system})
    for where, item in _items(row, "conversations"):
        role = _role(row, f"{where}.from", item.get("from"), roles, _SHAREGPT_ROLES)
        value, where = item.get("value"), f"{where}.value"  # noqa: PLW2901
        message = {"role": role, "content": value, "loss": _loss(row, where, item)}
        if role == "function_call":
            calls = _maybe_json(row, where, value, must_parse=True)
            calls = calls if isinstance(calls, list) else [calls]
            message |= {
                "role": "assistant",
                "content": None,
                "tool_calls": [_call(row, where, call) for call in calls],
            }
        elif role != "tool":
            message["content"] = _checked_text(row, where, value)
        messages.append(_answered(row, where, message))
    return _read(row, messages, _tools(row, "tools"))


def read_openai(row: Row, roles: Roles) -> Sequence[Message]:
    """Read OpenAI's messages: `tools`, `tool_calls`, content parts, the old `function_call`."""
    messages = []
    for where, item in _items(row, "messages"):
        role = _role(row, f"{where}.role", item.get("role"), roles, _OPENAI_ROLES)
        message = {
            "role": role,
            "content": item.get("content"),
            "tool_call_id": item.get("tool_call_id"),
            "loss": _loss(row, where, item),
        }
        if isinstance(item.get("content"), list) and role != "tool":
            message["content"] = _joined_parts(row, f"{where}.content", item["content"])
        calls = item.get("tool_calls") or []
        if not calls and item.get("function_call"):
            calls = [item["function_call"]]
        if not isinstance(calls, list):
            raise _bad(row, f"{where}.tool_calls", f"got {_kind(calls)}, expected a list of calls.")
        message["tool_calls"] = [_call(row, f"{where}.tool_calls", call) for call in calls]
        if role != "tool" and not (calls and item.get("content") is None):
            message["content"] = _checked_text(row, f"{where}.content", message.get("content"))
        messages.append(_answered(row, f"{where}.content", message))
    tools = _tools(row, "tools") or _tools(row, "functions")
    return _read(row, messages, tools)


def _read(row: Row, messages: list[dict[str, Any]], tools: Any) -> list[Message]:
    """Read checked messages as at inference, then mark which answers are learned."""
    try:
        result = read_messages(messages, tools or None)
    except NotUnicodeError as error:
        raise _bad(row, "", str(error), "encoding") from None
    except TemplateError as error:
        raise _bad(row, "", str(error)) from None
    # Results of tools may have moved between calls, but answers keep their order.
    flags = iter(
        flag
        for message in messages
        if message["role"] == "assistant"
        for flag in [message.get("loss")] * _num_turns(message)
    )
    return [
        replace(message, is_learned=next(flags)) if message.role == "assistant" else message
        for message in result
    ]


def _num_turns(message: Mapping[str, Any]) -> int:
    """Count the turns that an assistant's message becomes: the remark, and each call."""
    calls = len(message.get("tool_calls") or ())
    return calls + bool(message.get("content")) if calls else 1


def read_chatglm3(row: Row, roles: Roles) -> Sequence[Message]:
    """Read the official format: `role` and `content`, a `tool` role, `loss` flags, `tools`.

    As in the official preprocessor, `tools`, even an empty list, is announced by a
    separate system message, before one of the row. One thing differs: a message of role
    `observation` is learned only if its `loss` is true; there it is learned by default.
    """
    messages = []
    tools = _tools(row, "tools")
    if tools is not None:
        messages.append(Message("system", TOOLS_PROMPT, tools=tools))
    for where, item in _items(row, "conversations"):
        role = _role(row, f"{where}.role", item.get("role"), roles, _CHATGLM3_ROLES)
        loss = _loss(row, where, item)
        if role == "tool":
            messages += _tool_turns(row, where, item, loss)
            continue
        if "tool_calls" in item:
            raise _bad(
                row,
                f"{where}.tool_calls",
                "these are OpenAI's messages. Set data.format: openai and "
                "data.columns: {messages: conversations}.",
            )
        content = _checked_text(row, f"{where}.content", item.get("content"))
        metadata = _checked_text(row, f"{where}.metadata", item.get("metadata") or "")
        is_learned = None if role in ("system", "user") else loss
        messages.append(Message(cast("Role", role), content, metadata, is_learned=is_learned))
    return messages


def _tool_turns(row: Row, where: str, item: Mapping[str, Any], loss: bool | None) -> list[Message]:
    """Split a `tool` message into the call and its result."""
    call = {"name": item.get("name"), "arguments": item.get("parameters")}
    function = _call(row, where, call)["function"]
    observation = item.get("observation")
    if not isinstance(observation, str):
        observation = json.dumps(observation, ensure_ascii=False)
    try:
        content = render_tool_call(function["arguments"])
    except TemplateError as error:
        raise _bad(row, where, str(error)) from None
    return [
        Message("assistant", content, metadata=function["name"], is_learned=loss),
        Message("observation", observation),
    ]


# --- A better answer and a worse one ------------------------------------------------------


def sides(row: Row) -> tuple[Row, Row]:
    """Split a row in two that other formats read: with the better answer, and with the worse."""
    names = ("chosen", "rejected", "rejected_response")
    rest = {name: value for name, value in row.items() if name not in names}
    if "rejected_response" in row:
        return Row(rest, row.file, row.line), _with_answer(row, rest, row["rejected_response"])
    better, worse = (_side(row, rest, name) for name in ("chosen", "rejected"))
    return better, worse


def _side(row: Row, rest: Mapping[str, Any], name: str) -> Row:
    """Put the answer of a column into the row: a text, a message, or several."""
    answer = row[name]
    if isinstance(answer, str):
        return _with_answer(row, rest, answer)
    fields = dict(rest)
    if isinstance(answer, dict):
        field = "conversations" if "conversations" in fields else "messages"
        return Row({**fields, field: [*(fields.get(field) or []), answer]}, row.file, row.line)
    if not isinstance(answer, list | tuple) or not all(isinstance(m, dict) for m in answer):
        raise _bad(row, name, f"got {_kind(answer)}, expected an answer or messages.")
    prompt = fields.pop("prompt", None)
    if isinstance(prompt, str):  # it is also in the messages, unless they are answers alone
        is_answer = bool(answer) and answer[0].get("role") == "assistant"
        prompt = [{"role": "user", "content": prompt}] if is_answer else None
    field = "conversations" if answer and "from" in answer[0] else "messages"
    return Row({**fields, field: [*(prompt or []), *answer]}, row.file, row.line)


def _with_answer(row: Row, rest: Mapping[str, Any], answer: Any) -> Row:
    """Use a text as the answer of a row, whatever its other columns are."""
    if isinstance(rest.get("messages"), list | tuple):
        turns = [turn for turn in rest["messages"] if isinstance(turn, dict)]
        if turns and turns[-1].get("role") == "assistant":
            turns.pop()
        last = {"role": "assistant", "content": answer}
        return Row({**rest, "messages": [*turns, last]}, row.file, row.line)
    asking = {"instruction": "output", "prompt": "response", "query": "response"}
    for question, field in {**asking, "question": "answer", "content": "summary"}.items():
        if question in rest:
            return Row({**rest, field: answer}, row.file, row.line)
    raise _bad(
        row,
        "chosen",
        "the row has no question for it: expected instruction, prompt, query or question, or "
        "messages in chosen and rejected.",
    )


def read_better(row: Row, roles: Roles) -> Sequence[Message]:
    """Read the better of two answers, like a row with one answer."""
    better, _ = sides(row)
    return detect([better]).read(better, roles)


def _items(row: Row, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the messages of a row, each with its place, as in `messages[3]`."""
    items = _maybe_json(row, field, row.get(field), must_parse=True)
    if not isinstance(items, list):
        raise _bad(row, field, f"got {_kind(items)}, expected a list of messages.")
    if not items:
        raise _bad(row, field, "the conversation is empty. Take the row out.")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise _bad(row, f"{field}[{index}]", f"got {_kind(item)}, expected a message object.")
        yield f"{field}[{index}]", item


def _role(row: Row, where: str, role: Any, mine: Roles, known: Mapping[str, str]) -> str:
    if isinstance(role, str):
        ours = known.get(mine.get(role, role))
        if ours is not None:
            return ours
    field, key = where.split("[", maxsplit=1)[0], where.rsplit(".", maxsplit=1)[-1]
    if role is None:
        other = {"from": "role", "role": "from"}[key]
        styles = {"messages": "openai", "conversations": "chatglm3"}
        hint = f"Messages with {other!r} are of format " + (
            f"sharegpt: set data.format: sharegpt, data.columns: {{conversations: {field}}}."
            if other == "from"
            else f"{styles.get(field, 'openai')}: set data.format."
        )
        raise _bad(row, where, f"the message has no {key!r}. {hint}")
    raise _bad(
        row,
        where,
        f"the turn is from {role!r}, expected one of {', '.join(known)}. Rename the role in the "
        f"file, or map it in the recipe: data.roles: {{{role}: assistant}}.",
        "role-order",
    )


def _call(row: Row, where: str, call: Any) -> dict[str, Any]:
    """Read a call of a tool, bare or under OpenAI's "function", arguments as object or text."""
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad(row, where, f"got {_kind(function)} without a name, expected a call of a tool.")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = _maybe_json(row, f"{where}.arguments", arguments or {}, must_parse=True)
    if not isinstance(arguments, dict):
        reason = f"got {_kind(arguments)}, expected an object with the arguments."
        raise _bad(row, f"{where}.arguments", reason)
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call.get("id"), "function": named}


def _joined_parts(row: Row, where: str, parts: list[Any]) -> str:
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else _kind(part)
        if kind != "text":
            raise _bad(row, where, f"a part of type {kind!r}; ChatGLM3 reads text alone.")
        texts.append(_checked_text(row, f"{where}.text", part.get("text")))
    return "".join(texts)


def _loss(row: Row, where: str, item: Mapping[str, Any]) -> bool | None:
    """Whether the turn is learned: `loss`, or OpenAI's `weight` of 0 or 1; None if not given."""
    for field, values in (("loss", (True, False)), ("weight", (0, 1))):
        value = item.get(field)
        if value is None:
            continue
        if value not in values or (field == "loss" and not isinstance(value, bool)):
            raise _bad(row, f"{where}.{field}", f"{value!r}, expected one of {values}.")
        return bool(value)
    return None


def _answered(row: Row, where: str, message: dict[str, Any]) -> dict[str, Any]:
    """Refuse an assistant message without content and without tool calls."""
    empty = not (message.get("content") or message.get("tool_calls"))
    if message["role"] == "assistant" and empty:
        raise _empty_answer(row, where)
    return message


def _empty_answer(row: Row, where: str) -> RowError:
    reason = "the answer is empty. Write one, or take the turn out."
    return _bad(row, where, reason, "empty-answer")


def _tools(row: Row, field: str) -> Any:
    """Return the tools of a row, a list or its JSON text; None if there are none."""
    tools = row.get(field)
    if isinstance(tools, str) and not tools.strip():
        return None
    tools = _maybe_json(row, field, tools, must_parse=True)
    if tools is not None and not isinstance(tools, list):
        raise _bad(row, field, f"got {_kind(tools)}, expected a list of tools.")
    return tools


# --- Values -------------------------------------------------------------------------------


def _text(row: Row, field: str, *, optional: bool = False) -> str:
    value = row.get(field)
    if value is None and optional:
        return ""
    return value if isinstance(value, str) else _checked_text(row, field, value)


def _checked_text(row: Row, where: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise _bad(row, where, "the field is missing or null, expected text.")
    raise _bad(row, where, f"got {_kind(value)}, expected text. Put it in quotes.")


def _maybe_json(row: Row, where: str, value: Any, *, must_parse: bool = False) -> Any:
    """Parse a value that may be JSON text, as it must be in CSV."""
    if not isinstance(value, str) or not (value.strip() or must_parse):
        return None if value == "" else value
    try:
        return parse_json(value)
    except ValueError as error:
        raise _bad(row, where, f"its text is not valid JSON: {error}") from None


def _kind(value: Any) -> str:
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
    return f"a {type(value).__name__}"


def _check_tool_names(row: Row, format: Format, messages: Sequence[Message]) -> None:
    """Refuse to learn a call of a tool whose name a reply could not repeat."""
    for message in messages:
        if message.metadata:
            try:
                check_tool_name(message.metadata)
            except TemplateError as error:
                raise _bad(row, format.required[-1], str(error)) from None


def _check_encodable(messages: Sequence[Message]) -> None:
    """Refuse what no tokenizer accepts: half of a surrogate pair, which JSON can contain."""
    for message in messages:
        message.content.encode()
        message.metadata.encode()
        if message.tools:
            json.dumps(message.tools, ensure_ascii=False).encode()


def _bad(row: Row, field: str, reason: str, check: RowCheck = "unreadable") -> RowError:
    return RowError(BadRow(row.file, row.line, field, reason, row_excerpt(row), check))


# --- Columns ------------------------------------------------------------------------------


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    """Rename columns to our names."""
    if not columns:
        return row
    theirs = set(columns.values())
    fields = {name: value for name, value in row.items() if name not in theirs}
    fields |= {ours: row[column] for ours, column in columns.items() if column in row}
    return Row(fields, row.file, row.line)


def _check_columns(columns: Mapping[str, str], row: Row) -> None:
    known = sorted({name for f in FORMATS.values() for name in (*f.required, *f.optional)})
    for ours, theirs in columns.items():
        if ours not in known:
            near = difflib.get_close_matches(ours, known, n=1)
            raise DataError(
                f"data.columns names our field {ours!r}, expected one of {', '.join(known)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
        if theirs not in row:
            raise DataError(
                f"{row.file}:{row.line}: data.columns takes {ours!r} from column {theirs!r}, "
                f"but the columns are {_listed(row)}."
            )


def _named(name: str, fields: set[str], row: Row) -> Format:
    format = FORMATS.get(name)
    if format is None:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"data.format {name!r} is not known.{hint} Known are {_known_formats()}.")
    missing = [field for field in format.required if field not in fields]
    if missing:
        raise DataError(
            f"{row.file}:{row.line}: format {name} needs the columns "
            f"{', '.join(format.required)}; {', '.join(missing)} is not among {_listed(row)}. "
            f"Say which column it is: data.columns: {{{missing[0]}: their_column}}."
        )
    return format


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
        return list(_items(row, "conversations"))
    except RowError:
        return []


def _listed(row: Row) -> str:
    return ", ".join(map(repr, row)) or "none"


def _known_formats() -> str:
    return "; ".join(f"{f.name} ({', '.join(f.required)})" for f in FORMATS.values())


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(
            "alpaca",
            ("instruction", "output"),
            ("input", "history", "system"),
            read_alpaca,
            answer="output",
        ),
        _pairs("prompt_response", "prompt", "response"),
        _pairs("query_response", "query", "response"),
        _pairs("question_answer", "question", "answer"),
        _pairs("content_summary", "content", "summary"),
        Format("sharegpt", ("conversations",), ("tools", "system"), read_sharegpt),
        Format("openai", ("messages",), ("tools", "functions"), read_openai),
        Format("chatglm3", ("conversations",), ("tools",), read_chatglm3),
        Format("chosen_rejected", ("chosen", "rejected"), (), read_better),
        Format("rejected_response", ("rejected_response",), (), read_better),
    )
}
PAIR_FORMATS = ("chosen_rejected", "rejected_response")
_ANSWERS = {format.answer for format in FORMATS.values()}
TEXTS = Format("texts", ("text",), (), lambda row, roles: [Message("user", _text(row, "text"))])
