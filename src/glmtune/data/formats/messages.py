"""Rows of messages: ShareGPT's, OpenAI's, and those of ChatGLM3's own fine-tuning code.

For tools all formats share one path: OpenAI's and ShareGPT's messages are read by
`conversation.read_messages`, as a program's messages are at inference, while `chatglm3` keeps
the layout of the official preprocessor (spec section 9.2). `tools` on a system message and
`metadata` on an answer, ChatGLM3's own fields, are read in every format.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any, cast

from glmtune.conversation import TOOLS_PROMPT, Message, Role, read_messages
from glmtune.data.formats.keys import LOSS_KEYS, MEDIA, refuse_media
from glmtune.data.formats.roles import (
    CHATGLM3_ROLES,
    OPENAI_ROLES,
    SHAREGPT_ROLES,
    Roles,
    read_role,
    role_of,
)
from glmtune.data.formats.values import (
    EMPTY,
    bad,
    cannot_render,
    checked_text,
    empty_answer,
    kind,
    maybe_json,
    text,
)
from glmtune.data.rows import Row
from glmtune.errors import TemplateError
from glmtune.tool_calls import render_tool_call

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a part of a content that has text."""
NATIVE = frozenset(("metadata", "tools"))
"""ChatGLM3's own fields of a message."""
MAX_WEIGHT = 1_000
"""Of an answer in the loss."""
Items = Iterable[tuple[str, Mapping[str, Any]]]
"""Messages of a row, each with its place, as in `messages[3]`."""


def read_sharegpt(row: Row, roles: Roles) -> Sequence[Message]:
    """Read messages of `from` and `value`; that of a function_call is JSON: name and arguments."""
    messages = _system(row)
    for where, item in items(row, "conversations"):
        role = read_role(row, f"{where}.from", item.get("from"), roles, SHAREGPT_ROLES)
        value, where = item.get("value"), f"{where}.value"  # noqa: PLW2901
        message = {"role": role, "content": value, "loss": _loss(row, where, item)}
        if not NATIVE.isdisjoint(item):
            message |= _native(row, where, role, item)
        if role == "function_call":
            message |= _calls_in(row, where, value)
        elif role != "tool":
            message["content"] = checked_text(row, where, value)
        messages.append(_answered(row, where, message))
    return announced(row, messages, tools_of(row, "tools"))


def read_openai(row: Row, roles: Roles) -> Sequence[Message]:
    """Read OpenAI's messages: `tools`, `tool_calls`, content parts, the old `function_call`.

    ms-swift's are read too: roles `tool_call`, with JSON as content, and `tool_response`.
    """
    tools, functions = tools_of(row, "tools"), tools_of(row, "functions")
    if tools and functions and tools != functions:
        raise bad(row, "functions", "there are tools and functions, and they differ. Keep one.")
    tools = tools or functions
    return read_turns(row, items(row, "messages"), roles, tools)


def read_turns(row: Row, turns: Items, roles: Roles, tools: Any = None) -> Sequence[Message]:
    """Read messages of `role` and `content`, after the `system` text of the row.

    Args:
        row: with the messages.
        turns: the messages.
        roles: the user's own.
        tools: what the model may call.
    """
    messages = _system(row)
    for where, item in turns:
        role = read_role(row, f"{where}.role", item.get("role"), roles, OPENAI_ROLES)
        content = item.get("content")
        message = {
            "role": role,
            "content": content,
            "tool_call_id": item.get("tool_call_id"),
            "loss": _loss(row, where, item),
        }
        if not NATIVE.isdisjoint(item):
            message |= _native(row, where, role, item)
        if item.get("reasoning_content") not in EMPTY:
            place = f"{where}.reasoning_content"
            message["reasoning_content"] = checked_text(row, place, item["reasoning_content"])
        if role == "function_call":
            message |= _calls_in(row, f"{where}.content", content)
            messages.append(message)
            continue
        if isinstance(content, list) and role != "tool":
            message["content"] = _joined_parts(row, f"{where}.content", content)
        calls = [] if item.get("tool_calls") in EMPTY else item["tool_calls"]
        if not calls and item.get("function_call") not in EMPTY:
            calls = [item["function_call"]]
        if not isinstance(calls, list):
            raise bad(row, f"{where}.tool_calls", f"got {kind(calls)}, expected a list of calls.")
        if calls and "metadata" in message:
            reason = "tool_calls and metadata both name the tool that is called. Keep one."
            raise bad(row, f"{where}.metadata", reason)
        message["tool_calls"] = [_call(row, f"{where}.tool_calls", call) for call in calls]
        if role != "tool" and not (calls and content is None):
            message["content"] = checked_text(row, f"{where}.content", message.get("content"))
        messages.append(_answered(row, f"{where}.content", message))
    return announced(row, messages, tools)


def announced(row: Row, messages: list[dict[str, Any]], tools: Any) -> list[Message]:
    """Read checked messages as at inference, then mark which answers are learned.

    Args:
        row: with the messages.
        messages: with OpenAI's fields.
        tools: of the row; none if empty.
    """
    messages = _joined_calls(messages)
    if tools and any(message.get("tools") not in (None, tools) for message in messages):
        reason = "there are tools beside the messages and others in a system message. Keep one."
        raise bad(row, "tools", reason)
    try:
        result = list(read_messages(messages, tools or None))
    except TemplateError as error:
        raise cannot_render(row, "", error) from None
    # Results of tools may have moved between calls, but answers keep their order.
    marks = iter(
        message.get("loss")
        for message in messages
        if message["role"] == "assistant"
        for _ in range(_num_turns(message))
    )
    for index, message in enumerate(result):
        if message.role == "assistant" and (mark := next(marks)) is not None:
            result[index] = replace(message, is_learned=mark)
    return result


def _num_turns(message: Mapping[str, Any]) -> int:
    """Count the turns that an assistant's message becomes: the remark, and each call."""
    calls = len(message.get("tool_calls") or ())
    return calls + bool(message.get("content")) if calls else 1


def _joined_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join calls that follow each other where as many results do, as ms-swift writes them.

    Each result then comes after its call, which is the only order that ChatGLM3 has.
    """
    if not any("is_call" in a and "is_call" in b for a, b in pairwise(messages)):
        return messages
    runs = [list(run) for _, run in groupby(messages, key=_kind_of_turn)]
    result: list[dict[str, Any]] = []
    for run, following in zip(runs, [*runs[1:], []], strict=True):
        are_answered = len(following) == len(run) > 1 and following[0]["role"] == "tool"
        if "is_call" in run[0] and are_answered:
            calls = [call for message in run for call in message["tool_calls"]]
            result.append({**run[0], "tool_calls": calls})
        else:
            result += run
    return result


def _kind_of_turn(message: Mapping[str, Any]) -> tuple[str, bool, Any]:
    return message["role"], message.get("is_call", False), message.get("loss")


def read_chatglm3(row: Row, roles: Roles) -> Sequence[Message]:
    """Read the official format: `role` and `content`, a `tool` role, `loss` flags, `tools`.

    As in the official preprocessor, `tools`, any JSON value and even an empty list, is announced
    by a separate system message, before one of the row. One thing differs: a message of role
    `observation` is learned only if its `loss` is true; there it is learned by default.
    """
    turns = list(items(row, "conversations"))
    known = CHATGLM3_ROLES
    if any(role_of(item.get("role"), roles, known) == "function_call" for _, item in turns):
        return read_turns(row, turns, roles, tools_of(row, "tools"))  # rows of ms-swift
    messages = []
    tools = _json_of(row, "tools")
    if tools is not None:
        messages.append(Message("system", TOOLS_PROMPT, tools=tools))
    if system := text(row, "system", optional=True):
        messages.append(Message("system", system))
    for where, item in turns:
        role = read_role(row, f"{where}.role", item.get("role"), roles, known)
        loss = _loss(row, where, item)
        if role == "tool":
            messages += _tool_turns(row, where, item, loss)
            continue
        if item.get("tool_calls"):
            raise bad(
                row,
                f"{where}.tool_calls",
                "these are OpenAI's messages. Set data.format: openai and "
                "data.columns: {messages: conversations}.",
            )
        content = checked_text(row, f"{where}.content", item.get("content"))
        native = _native(row, where, role, item)
        is_learned = None if role in ("system", "user") else loss
        messages.append(Message(cast("Role", role), content, **native, is_learned=is_learned))
    return messages


def _tool_turns(row: Row, where: str, item: Mapping[str, Any], loss: float | None) -> list[Message]:
    """Split a `tool` message into the call and its result."""
    call = {"name": item.get("name"), "arguments": item.get("parameters")}
    function = _call(row, where, call)["function"]
    observation = item.get("observation")
    if not isinstance(observation, str):
        observation = json.dumps(observation, ensure_ascii=False)
    try:
        content = render_tool_call(function["arguments"])
    except TemplateError as error:
        raise cannot_render(row, where, error) from None
    return [
        Message("assistant", content, metadata=function["name"], is_learned=loss),
        Message("observation", observation),
    ]


# --- Fields of a row ----------------------------------------------------------------------


def items(row: Row, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the messages of a row, each with its place, as in `messages[3]`.

    Raises:
        RowError: the field is not a list of objects, or a message has an image.
    """
    found = maybe_json(row, field, row.get(field), must_parse=True)
    if not isinstance(found, list):
        raise bad(row, field, f"got {kind(found)}, expected a list of messages.")
    if not found:
        raise bad(row, field, "the conversation is empty. Take the row out.")
    for index, item in enumerate(found):
        if not isinstance(item, dict):
            raise bad(row, f"{field}[{index}]", f"got {kind(item)}, expected a message object.")
        if not MEDIA.isdisjoint(item):
            refuse_media(row, item, f"{field}[{index}].")
        yield f"{field}[{index}]", item


def tools_of(row: Row, field: str) -> list[Any] | None:
    """Return the tools of a row, a list or its JSON text; None if there are none.

    Raises:
        RowError: it is something else.
    """
    tools = _json_of(row, field)
    if tools is not None and not isinstance(tools, list):
        remedy = " Put a single tool in brackets: [{...}]." if isinstance(tools, dict) else ""
        raise bad(row, field, f"got {kind(tools)}, expected a list of tools.{remedy}")
    return tools


def _json_of(row: Row, field: str) -> Any:
    value = row.get(field)
    if isinstance(value, str) and not value.strip():
        return None
    return maybe_json(row, field, value, must_parse=True)


def _system(row: Row) -> list[dict[str, Any]]:
    system = text(row, "system", optional=True)
    return [{"role": "system", "content": system}] if system else []


# --- Fields of a message ------------------------------------------------------------------


def _native(row: Row, where: str, role: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return ChatGLM3's own fields of a message: `metadata`, and `tools` on a system message."""
    fields: dict[str, Any] = {}
    if item.get("metadata") not in EMPTY:
        fields["metadata"] = checked_text(row, f"{where}.metadata", item["metadata"])
    if role == "system" and item.get("tools") is not None:
        fields["tools"] = item["tools"]
    return fields


def _loss(row: Row, where: str, item: Mapping[str, Any]) -> bool | float | None:
    """Whether the turn is learned, by any of its flags, or its weight; None if it has none."""
    if LOSS_KEYS.isdisjoint(item):
        return None
    flags = {field: item[field] for field in LOSS_KEYS & item.keys() if item[field] is not None}
    for field, value in sorted(flags.items()):
        if not isinstance(value, bool | int | float) or not 0 <= value <= MAX_WEIGHT:
            reason = (
                f"got {kind(value)}, expected true, false, or a weight from 0 to {MAX_WEIGHT:,}: "
                "2 counts the answer twice."
            )
            raise bad(row, f"{where}.{field}", reason)
    weights = {float(value) for value in flags.values() if not isinstance(value, bool)}
    are_learned = {bool(value) for value in flags.values()}
    if len(weights) > 1 or len(are_learned) > 1:
        reason = f"{' and '.join(sorted(flags))} contradict each other. Keep one of them."
        raise bad(row, where, reason)
    weight = weights.pop() if weights else 1.0
    if weight not in (0, 1):
        return weight
    return are_learned.pop() if are_learned else None


def _calls_in(row: Row, where: str, value: Any) -> dict[str, Any]:
    """Read the message of a call: an object with name and arguments, a list of them, or JSON."""
    calls = maybe_json(row, where, value, must_parse=True)
    calls = calls if isinstance(calls, list) else [calls]
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [_call(row, where, call) for call in calls],
        "is_call": True,
    }


def _call(row: Row, where: str, call: Any) -> dict[str, Any]:
    """Read a call of a tool, bare or under OpenAI's "function", arguments as object or text."""
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        reason = (
            f"got {kind(function)} without a name, expected a call of a tool, such as "
            '{"name": "get_weather", "arguments": {"city": "Paris"}}.'
        )
        raise bad(row, where, reason)
    arguments = function.get("arguments", function.get("parameters"))
    if function.get("parameters", arguments) != arguments:
        raise bad(row, where, "there are arguments and parameters, and they differ. Keep one.")
    arguments = maybe_json(row, f"{where}.arguments", arguments or {}, must_parse=True)
    if not isinstance(arguments, dict):
        reason = f"got {kind(arguments)}, expected an object with the arguments by name."
        raise bad(row, f"{where}.arguments", reason)
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call.get("id"), "function": named}


def _joined_parts(row: Row, where: str, parts: list[Any]) -> str:
    texts = []
    for part in parts:
        what = part.get("type", "text") if isinstance(part, dict) else kind(part)
        if what not in TEXT_PARTS:
            reason = (
                f"a part of type {what!r}; ChatGLM3 reads text alone. Take the row out, or the "
                "part if the text is enough."
            )
            raise bad(row, where, reason)
        texts.append(checked_text(row, f"{where}.text", part.get("text")))
    return "".join(texts)


def _answered(row: Row, where: str, message: dict[str, Any]) -> dict[str, Any]:
    """Refuse an assistant message without content and without tool calls."""
    is_empty = not (message.get("content") or message.get("tool_calls"))
    if message["role"] == "assistant" and is_empty:
        raise empty_answer(row, where)
    return message
