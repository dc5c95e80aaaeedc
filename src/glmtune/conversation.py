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

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from glmtune.errors import TemplateError

Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[Role, ...] = get_args(Role)

TOOL_FUNCTION = "tool_call"  # the name that every ChatGLM3 call has
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
        is_learned: whether its tokens are labels in training. None is the template's default:
            only answers are learned.
    """

    role: Role
    content: str
    metadata: str = ""
    tools: Any = None
    is_learned: bool | None = None

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

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)


def render_tool_call(arguments: Mapping[str, Any]) -> str:
    """Render the content of an assistant message that calls a tool.

    >>> print(render_tool_call({"city": "北京", "days": 2}))
    ```python
    tool_call(city='北京', days=2)
    ```
    """
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"```python\n{TOOL_FUNCTION}({call})\n```"


def parse_tool_call(text: str) -> dict[str, Any]:
    r"""Parse the arguments of a fenced `tool_call(...)`, the inverse of `render_tool_call`.

    The call is Python source written by a model, so it is parsed as a syntax tree of literals
    and never evaluated. The first and the last line are taken as the fence without a check.
    Arguments must be keywords, and their values literals that JSON can represent.

    >>> parse_tool_call("```python\ntool_call(city='北京', days=2)\n```")
    {'city': '北京', 'days': 2}

    Raises:
        ValueError: the text is not such a call; the message says why.
    """
    source = "\n".join(text.strip().split("\n")[1:-1]).strip()
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a {TOOL_FUNCTION}(...) between two fence lines: {error}") from error
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.func.id != TOOL_FUNCTION
    ):
        raise ValueError(f"expected a call of {TOOL_FUNCTION}, got {source[:80]!r}")
    if call.args:
        raise ValueError(f"{TOOL_FUNCTION} takes named arguments only")
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError(f"{TOOL_FUNCTION} takes each argument once and by name")
        arguments[keyword.arg] = _literal(keyword.arg, keyword.value)
    return arguments


def _literal(name: str, node: ast.expr) -> Any:
    """Evaluate a literal that JSON can represent."""
    try:
        value = ast.literal_eval(node)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"the value of {name!r} is not a literal that JSON can represent"
        ) from error
    return value


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
                f"turn {index} is a system message after a {before} message. "
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
                f"{'nothing' if before is None else f'a {before} message'}. "
                "A tool's result follows the assistant message that called the tool."
            )
        before = role


def read_messages(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> tuple[Message, ...]:
    """Read messages with ChatGLM3's fields, or with those of OpenAI's chat API.

    ChatGLM3 has `role`, `content`, `metadata` and, on a system message, `tools`. OpenAI has
    `tool_calls` on an assistant message and role `tool` for their results. Parallel calls
    become sequential, each followed by its result, because ChatGLM3 supports no other order.

    Args:
        messages: each has at least `role`; `content` may be missing next to `tool_calls`.
        tools: what the model may call, with or without OpenAI's `{"type": "function"}` wrapper.
            They are added to the first system message; if there is none, one that announces
            them is inserted.

    Raises:
        TemplateError: names the message and the field that cannot be read.
    """
    pending = list(enumerate(messages))
    result: list[Message] = []
    while pending:
        index, message = pending.pop(0)
        calls = message.get("tool_calls") or ()
        if not calls:
            result.append(_read_message(index, message))
            continue
        if message.get("content"):
            result.append(_read_message(index, message))
        for call in calls:
            result.append(_read_tool_call(index, call))
            if len(calls) > 1 and (answer := _take_answer(pending, call.get("id"))):
                result.append(_read_message(*answer))
    return _announce(result, tools) if tools else tuple(result)


_ROLE_OF: dict[str, Role] = {
    **{role: role for role in ROLES},
    "tool": "observation",
    "function": "observation",
    "developer": "system",
}


def _read_message(index: int, message: Mapping[str, Any]) -> Message:
    """Read one message without its tool calls."""
    role = _ROLE_OF.get(str(message.get("role")))
    if role is None:
        raise TemplateError(
            f"message {index} is from {message.get('role')!r}, "
            f"expected one of {', '.join(_ROLE_OF)}."
        )
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if role == "observation" and not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)  # as the official data format does
    if not isinstance(content, str):
        raise TemplateError(
            f"message {index} ({role}) has a content of type {type(content).__name__}, "
            "expected text. ChatGLM3 reads text only."
        )
    tools = message.get("tools") if role == "system" else None
    metadata = message.get("metadata") or ""
    return Message(role, content, metadata=metadata, tools=tools)


def _read_tool_call(index: int, call: Mapping[str, Any]) -> Message:
    """Read one of OpenAI's `tool_calls`, whose arguments are an object or JSON text."""
    function = call.get("function", call)
    name, arguments = function.get("name"), function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise TemplateError(
                f"message {index} calls {name!r} with arguments that are not JSON: {error}."
            ) from error
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise TemplateError(
            f"message {index} has a tool call {dict(call)!r}, expected "
            '{"function": {"name": text, "arguments": object or its JSON text}}.'
        )
    return Message("assistant", render_tool_call(arguments), metadata=name)


def _take_answer(
    pending: list[tuple[int, Mapping[str, Any]]], call_id: str | None
) -> tuple[int, Mapping[str, Any]] | None:
    """Remove the result of a call from the tool messages that come next, and return it."""
    answers = []
    for position, (_, message) in enumerate(pending):
        if message.get("role") != "tool":
            break
        answers.append(position)
    for position in answers:
        if call_id is None or pending[position][1].get("tool_call_id") in (call_id, None):
            return pending.pop(position)
    return None


def _announce(messages: list[Message], tools: Sequence[Any]) -> tuple[Message, ...]:
    """Add the tools to the first system message, or insert one that announces them."""
    plain = [
        tool["function"] if isinstance(tool, Mapping) and "function" in tool else tool
        for tool in tools
    ]
    if messages and messages[0].role == "system":
        return (replace(messages[0], tools=plain), *messages[1:])
    return (Message("system", TOOLS_PROMPT, tools=plain), *messages)
