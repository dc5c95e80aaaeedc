r"""Read what a GLM-4 or later model writes after `<|assistant|>`: a text, or calls of tools.

    "\n你好"                                             an answer
    "get_weather\n{\"city\": \"北京\"}"                    a call, where a message has metadata
    "\n<think></think>\n<tool_call>get_weather\n
     <arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>"     a call of GLM-4.5

A call is read into the form that every message has (`glmtune.conversation`), so that it can be
rendered again. What cannot be read as a call stays text, as it was written. While an answer is
still being written, the text of a call is held back: what is shown must not change later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from glmtune.conversation import Message, read_messages
from glmtune.errors import TemplateError
from glmtune.model.chatglm.chat_format import split_reply

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY, VALUE, END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
MARKS = (CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)

Decode = Callable[[Sequence[int]], str]


def split_thought(content: str) -> tuple[str, str]:
    """Split a content into its thought, without tags, and what comes after the closing tag.

    A content without a thought has an empty one, and its answer begins in a new line.
    """
    thought, tag, answer = content.partition(END_THINK)
    return (thought.lstrip().removeprefix(THINK), answer) if tag else ("", f"\n{content}")


def without_empty_thought(text: str, is_partial: bool) -> str:
    """Return a text without an empty thought at its beginning, and without white space around it.

    Args:
        text: of an answer.
        is_partial: hide what may become an empty thought.
    """
    text, empty = text.strip(), f"{THINK}{END_THINK}"
    if is_partial and empty.startswith(text):
        return ""
    return text.removeprefix(empty).strip()


def read_metadata_reply(text: str, is_partial: bool) -> Message:
    """Read a message that begins with its metadata line: a tool's name, or nothing.

    Args:
        text: of the message.
        is_partial: whether it goes on.
    """
    metadata, content = split_reply(text)
    metadata, content = metadata.strip(), content.strip()
    if not metadata:
        return Message("assistant", without_empty_thought(content, is_partial))
    if content.startswith("{"):
        if is_partial:
            content = ""
        elif (call := _as_call(metadata, content)) is not None:
            return call
    return Message("assistant", content, metadata=metadata)


def read_tool_calls(
    ids: Sequence[int], marks: Mapping[int, str], decode: Decode, is_partial: bool
) -> list[Message]:
    """Read a remark and the calls after it, which control tokens delimit.

    Args:
        ids: of a message.
        marks: the control tokens of calls, by id.
        decode: ids to text.
        is_partial: whether the message goes on.
    """
    remark, *calls = split_at(ids, next((i for i, mark in marks.items() if mark == CALL), -1))
    text = without_empty_thought(decode(remark), is_partial and not calls)
    read = [] if is_partial else [_read_call(call, marks, decode) for call in calls]
    if None in read:
        return [Message("assistant", decode(ids).strip())]
    found = [call for call in read if call is not None]
    return [Message("assistant", text), *found] if text or not found else found


def split_at(ids: Sequence[int], separator: int) -> list[list[int]]:
    """Split a list as `str.split` splits a string."""
    parts: list[list[int]] = [[]]
    for index in ids:
        if index == separator:
            parts.append([])
        else:
            parts[-1].append(index)
    return parts


def _read_call(ids: Sequence[int], marks: Mapping[int, str], decode: Decode) -> Message | None:
    """Read `name <arg_key>key</arg_key> <arg_value>value</arg_value> ... </tool_call>`."""
    name, *marked = _texts(ids, marks, decode)
    order = [mark for mark, _ in marked]
    num_arguments = len(order) // 4
    if order != [KEY, END_KEY, VALUE, END_VALUE] * num_arguments + [END_CALL]:
        return None
    keys, values = ([text for mark, text in marked if mark == kind] for kind in (KEY, VALUE))
    between = "".join(text for mark, text in marked if mark not in (KEY, VALUE))
    if between.strip() or len(set(keys)) < len(keys):
        return None
    arguments = {key: _value_of(text) for key, text in zip(keys, values, strict=True)}
    return _as_call(name[1].strip(), arguments)


def _texts(
    ids: Sequence[int], marks: Mapping[int, str], decode: Decode
) -> Iterator[tuple[str, str]]:
    """Yield each control token with the text after it, after the text before the first."""
    mark = ""
    run: list[int] = []
    for index in ids:
        if index in marks:
            yield mark, decode(run)
            mark, run = marks[index], []
        else:
            run.append(index)
    yield mark, decode(run)


def _value_of(text: str) -> Any:
    """Read the value of an argument: texts are written as they are, other values as JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def _refuse(name: str) -> None:
    raise ValueError(name)


def _as_call(name: str, arguments: Any) -> Message | None:
    """Make the message of a call; None where it is none."""
    call = {"function": {"name": name, "arguments": arguments}}
    try:
        [message] = read_messages([{"role": "assistant", "tool_calls": [call]}])
    except TemplateError:
        return None
    return message
