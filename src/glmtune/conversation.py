r"""Represent conversations: every row format is converted to them, and every template reads them.

A tool call is an assistant message whose `metadata` names the tool and whose `content` is
the call as ChatGLM3 writes it; the tool's result is an observation. Tool definitions belong
to the system message that announces them, as in ChatGLM3's own histories.

    system       tools=[{"name": "get_weather", ...}]
    user         北京天气怎么样
    assistant    metadata="get_weather"  content="```python\ntool_call(city='北京')\n```"
    observation  {"celsius": 3}
    assistant    北京现在 3 度。

Source: ChatGLM3, PROMPT.md; the reference is spec section 8.
"""

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from glmtune.errors import NotUnicodeError, TemplateError
from glmtune.tool_calls import (
    MAX_DEPTH,
    check_tool_name,
    half_a_pair,
    is_unicode,
    render_tool_call,
    shown,
)

Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[Role, ...] = get_args(Role)

TOOLS_PROMPT = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: of the author.
        content: the text.
        metadata: only for an assistant: the name of the tool it calls, else "".
        tools: only for a system message: the JSON value that describes the tools.
        is_learned: whether its tokens are labels in training, or the weight that these have.
            None is the template's default: only answers are learned.
        reasoning: only for an assistant: its thought, for templates that have a place for it.
    """

    role: Role
    content: str
    metadata: str = ""
    tools: Any = None
    is_learned: bool | float | None = None
    reasoning: str = ""

    @property
    def text(self) -> str:
        """The content to encode; for a system message, followed by the tools it announces."""
        if self.tools is None or self.role != "system":
            return self.content
        return f"{self.content}\n{json.dumps(self.tools, indent=4, ensure_ascii=False)}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a conversation, in order."""

    messages: tuple[Message, ...]
    is_good: bool | None = None  # what a label says of the last answer, in rows for KTO

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)


def check_turns(messages: Sequence[Message]) -> None:
    """Reject an order of turns that ChatGLM3 was not trained on.

    System messages come first; two user messages do not follow each other; an observation
    follows an assistant message.

    Raises:
        TemplateError: names the turn and what is allowed there.
    """
    before: Role | None = None
    for index, message in enumerate(messages):
        role = message.role
        if role not in ROLES:
            raise TemplateError(
                f"turn {index} is from {role!r}, expected one of {', '.join(ROLES)}."
            )
        if role == "system" and before not in (None, "system"):
            raise TemplateError(
                f"turn {index} is a system message after {_one(before)} message. "
                "Put system messages first."
            )
        if role == "user" and before == "user":
            raise TemplateError(
                f"turns {index - 1} and {index} are both from the user. "
                "Join them, or put the answer between them."
            )
        if role == "observation" and before != "assistant":
            raise TemplateError(
                f"turn {index} is an observation after "
                f"{'nothing' if before is None else f'{_one(before)} message'}. "
                "A tool's result follows the assistant message that called the tool."
            )
        before = role


def _one(role: str | None) -> str:
    return f"an {role}" if role in ("assistant", "observation") else f"a {role}"


def read_messages(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> tuple[Message, ...]:
    """Read messages with ChatGLM3's fields, or with those of OpenAI's chat API.

    ChatGLM3 has `role`, `content`, `metadata` and, on a system message, `tools`. OpenAI has
    `tool_calls` on an assistant message (before that `function_call`) and role `tool` for their
    results; other servers add `reasoning_content`, the thought before an answer, which goes with
    the first of the turns that a message becomes. Parallel calls become sequential, each
    followed by its result, because ChatGLM3 supports no other order.

    Args:
        messages: each has at least `role`; `content` may be missing next to `tool_calls`.
        tools: what the model may call, with or without OpenAI's `{"type": "function"}` wrapper.
            They are added to the first system message; if there is none, one that announces
            them is inserted.

    Raises:
        TemplateError: names the message and the field that cannot be read.
    """
    pending = deque(enumerate(checked_messages(messages)))
    result: list[Message] = []
    while pending:
        index, message = pending.popleft()
        calls = _tool_calls(index, message)
        first = len(result)
        if not calls or message.get("content"):
            result.append(_read_message(index, message))
        for call in calls:
            result.append(_read_tool_call(index, call))
            if len(calls) > 1 and (answer := _take_answer(pending, call.get("id"))):
                result.append(_read_message(*answer))
        if message.get("reasoning_content") and result[first].role == "assistant":
            result[first] = replace(result[first], reasoning=_thought(index, message))
    return _announce(result, tools) if tools else tuple(result)


_ROLE_OF: dict[str, Role] = {
    **{role: role for role in ROLES},
    "tool": "observation",
    "function": "observation",
    "developer": "system",
}
_TEXT_PARTS = (None, "text", "input_text", "output_text")  # types of a part of a content


def checked_messages(messages: Any, what: str = "messages") -> list[Mapping[str, Any]]:
    """Return messages as a list of mappings.

    Raises:
        TemplateError: they are something else; names the first.
    """
    if not isinstance(messages, list) and (
        isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable)
    ):
        raise TemplateError(
            f"the {what} are {shown(messages)}, expected a list such as "
            '[{"role": "user", "content": "..."}].'
        )
    checked = list(messages)
    for index, message in enumerate(checked):
        if not isinstance(message, (dict, Mapping)):  # the first is much faster to check
            raise TemplateError(
                f"message {index} is {shown(message)}, expected an object such as "
                '{"role": "user", "content": "..."}.'
            )
    return checked


def _tool_calls(index: int, message: Mapping[str, Any]) -> Sequence[Any]:
    """Return the calls of a message, which only an assistant makes."""
    field, calls = "tool_calls", message.get("tool_calls")
    if not calls and message.get("function_call"):
        field, calls = "function_call", [message["function_call"]]
    if calls is None or (isinstance(calls, (list, tuple, str, dict)) and not calls):
        return ()
    is_list = isinstance(calls, (list, tuple))
    if not is_list or not all(isinstance(call, (dict, Mapping)) for call in calls):
        wrong = next(c for c in calls if not isinstance(c, Mapping)) if is_list else calls
        raise TemplateError(
            f"message {index} has {shown(wrong)} in its {field}, expected a list of objects such "
            'as {"function": {"name": text, "arguments": object or its JSON text}}.'
        )
    if _role_of(index, message) != "assistant":
        raise TemplateError(
            f"message {index} is from {message.get('role')!r} and has {field}, which only an "
            "assistant makes. Change its role, or remove the field."
        )
    return tuple(calls)


def _role_of(index: int, message: Mapping[str, Any]) -> Role:
    name = message.get("role")
    role = _ROLE_OF.get(name) if isinstance(name, str) else None
    if role is None:
        raise TemplateError(
            f"message {index} is from {shown(name)}, expected one of {', '.join(_ROLE_OF)}."
        )
    return role


def _read_message(index: int, message: Mapping[str, Any]) -> Message:
    """Read one message without its tool calls."""
    role = _role_of(index, message)
    content = _read_content(index, role, message.get("content"))
    tools = message.get("tools") if role == "system" else None
    if tools is not None:
        _check_json(tools, f"the tools of message {index}")
    metadata = "" if message.get("metadata") is None else message["metadata"]
    if not isinstance(metadata, str):
        raise TemplateError(
            f"message {index} ({role}): its metadata is {shown(metadata)}, expected text: the "
            "name of the tool that the message calls, or nothing."
        )
    if metadata and not is_unicode(metadata):
        raise NotUnicodeError(half_a_pair(metadata, f"the metadata of message {index}"))
    return Message(role, content, metadata=metadata, tools=tools)


def _thought(index: int, message: Mapping[str, Any]) -> str:
    thought = message["reasoning_content"]
    if not isinstance(thought, str):
        raise TemplateError(
            f"message {index} (assistant) has the reasoning_content {shown(thought)}, expected "
            "text. Pass the thought as text, or leave it out."
        )
    if not is_unicode(thought):
        raise NotUnicodeError(half_a_pair(thought, f"the reasoning_content of message {index}"))
    return thought


def _read_content(index: int, role: Role, content: Any) -> str:
    """Return the text of a content; parts are joined, and the result of a tool may be any JSON."""
    if isinstance(content, str) and is_unicode(content):
        return content
    if isinstance(content, (list, tuple)) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if role == "observation" and not isinstance(content, str):
        try:  # as the official data format does
            content = json.dumps(content, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateError(
                f"message {index} (observation) has a content that is not JSON: {error}. Convert "
                "it to text first."
            ) from None
    if not isinstance(content, str):
        raise TemplateError(
            f"message {index} ({role}) has a content of type {type(content).__name__}, "
            'expected text, or a list of {"type": "text", "text": "..."}. ChatGLM3 reads text only.'
        )
    if not is_unicode(content):
        raise NotUnicodeError(half_a_pair(content, f"the content of message {index} ({role})"))
    return content


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, (dict, Mapping))
        and isinstance(part.get("text"), str)
        and part.get("type") in _TEXT_PARTS
    )


def _read_tool_call(index: int, call: Mapping[str, Any]) -> Message:
    """Read one of OpenAI's `tool_calls`, whose arguments are an object or JSON text."""
    function = call.get("function", call)
    is_object = isinstance(function, (dict, Mapping))
    if not is_object or not isinstance(function.get("name"), str):
        field, got = ("name", function.get("name")) if is_object else ("function", function)
        raise TemplateError(
            f"message {index} has a tool call whose {field} is {shown(got)}, "
            'expected {"function": {"name": text, "arguments": object or its JSON text}}.'
        )
    name, arguments = function["name"], function.get("arguments", {})
    try:
        check_tool_name(name)
        return Message("assistant", render_tool_call(_arguments(arguments)), metadata=name)
    except TemplateError as error:
        raise type(error)(f"message {index} calls {name[:60]!r}: {error}") from None


def _arguments(arguments: Any) -> Mapping[str, Any]:
    """Return the arguments of a call, which may be JSON text."""
    if isinstance(arguments, str):
        try:
            arguments = _JSON_READER.decode(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise TemplateError(
                f"it has arguments that are not JSON: {error}. Pass an object, or its JSON text."
            ) from None
    if not isinstance(arguments, (dict, Mapping)):
        raise TemplateError(
            f"its arguments are {shown(arguments)}, expected an object, or its JSON text."
        )
    return arguments


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; a name given twice would lose a value without a word."""
    result = dict(pairs)
    if len(result) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {twice[:60]!r} is given twice")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


_JSON_READER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
_JSON_WRITER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _check_json(value: Any, what: str) -> None:
    """Refuse what is not JSON, or so deep that writing it with indents would fail.

    Raises:
        TemplateError: says what is wrong.
    """
    try:
        text = _JSON_WRITER.encode(value)
        text.encode()
        if text.count("[") + text.count("{") <= MAX_DEPTH or not _is_deep(value):
            return
        problem = f"are nested more than {MAX_DEPTH} deep"
    except UnicodeEncodeError:
        problem = "have half of a surrogate pair in a text, which is not a character"
        raise NotUnicodeError(f"{what} {problem}. Decode the text again as UTF-8.") from None
    except (TypeError, ValueError, RecursionError) as error:
        problem = f"are not JSON: {error}"
    raise TemplateError(f"{what} {problem}. Give a list of tool definitions as JSON.")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = (v.values() if isinstance(v, dict) else v for v in level if _has_items(v))
        level = [item for items in inner for item in items]
    return bool(level)


def _has_items(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple))


def _take_answer(
    pending: deque[tuple[int, Mapping[str, Any]]], call_id: Any
) -> tuple[int, Mapping[str, Any]] | None:
    """Remove the result of a call from the tool messages that come next, and return it."""
    for position, (_, message) in enumerate(pending):
        if message.get("role") != "tool":
            break
        if call_id is None or message.get("tool_call_id") in (call_id, None):
            answer = pending[position]
            del pending[position]
            return answer
    return None


def _announce(messages: list[Message], tools: Any) -> tuple[Message, ...]:
    """Add the tools to the first system message, or insert one that announces them."""
    if not isinstance(tools, (list, tuple)):
        raise TemplateError(
            f"the tools are {shown(tools)}, expected a list such as "
            '[{"name": "get_weather", "description": "...", "parameters": {...}}].'
        )
    plain = [
        tool["function"] if isinstance(tool, (dict, Mapping)) and "function" in tool else tool
        for tool in tools
    ]
    _check_json(plain, "the tools")
    if not messages or messages[0].role != "system":
        return (Message("system", TOOLS_PROMPT, tools=plain), *messages)
    if messages[0].tools not in (None, plain):
        raise TemplateError(
            "message 0 (system) has tools of its own, and other tools are given next to the "
            "messages. Give them in one of the two places."
        )
    return (replace(messages[0], tools=plain), *messages[1:])
