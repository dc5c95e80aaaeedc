r"""Who said what: the one form that every row format becomes and every template reads.

A tool call is an assistant message whose `metadata` names the tool and whose `content` is
the call as ChatGLM3 writes it; the tool's result is an observation. Tool definitions hang
on the system message that announces them, as in ChatGLM3's own histories.

    system       tools=[{"name": "get_weather", ...}]
    user         北京天气怎么样
    assistant    metadata="get_weather"  content="```python\ntool_call(city='北京')\n```"
    observation  {"celsius": 3}
    assistant    北京现在 3 度。

Source: ChatGLM3, PROMPT.md; the reference is spec section 8.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from glmtune.errors import TemplateError

Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[Role, ...] = get_args(Role)

TOOLS_PROMPT = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: what is said, as text.
        metadata: only for an assistant: the name of the tool it calls, else "".
        tools: only for a system message: the JSON value that describes the tools.
        is_learned: whether training learns it. None is the template's default: answers
            are learned and nothing else is.
    """

    role: Role
    content: str
    metadata: str = ""
    tools: Any = None
    is_learned: bool | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order."""

    messages: tuple[Message, ...]

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)


def render_tool_call(arguments: Mapping[str, Any]) -> str:
    """Write the content of an assistant message that calls a tool.

    >>> print(render_tool_call({"city": "北京", "days": 2}))
    ```python
    tool_call(city='北京', days=2)
    ```
    """
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"```python\ntool_call({call})\n```"


def check_turns(messages: Sequence[Message]) -> None:
    """Refuse an order of turns that ChatGLM3 was not made for.

    System messages come first; two user messages do not follow each other; an observation
    follows an assistant message.

    Raises:
        TemplateError: names the turn and what may stand there.
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
