"""Checks of calls of tools against the tools that the conversation has."""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from glmtune.conversation import Conversation, Message
from glmtune.data.lint.findings import Fault
from glmtune.data.lint.texts import around
from glmtune.tool_calls import TOOL_FUNCTION, parse_tool_call

INTERPRETERS = ("interpreter", "code_interpreter", "python")  # their content is a program
_PLAIN_CALL = re.compile(
    r"\s*(?:<(?:tool_call|functioncall|function_call|tool_calls)>|```(?:json)?\s*)?\s*"
    r"\{\s*[\"'](?:name|function|tool|action|tool_name)[\"']\s*:\s*[\"'][\w.-]+[\"']\s*,\s*"
    r"[\"'](?:arguments|parameters|args|action_input|input)[\"']\s*:"
    rf"|\s*(?:```python\s*)?{TOOL_FUNCTION}\("
    r"|\s*<(?:tool_call|functioncall|function_call)>"
    r"|(?:.{0,200}\n)?\s*Action\s*[:：]\s*[\w.-]+\s*\n\s*Action Input\s*[:：]",
)
_ASKS_FOR_JSON = re.compile(r"(?i:json)|格式|结构化")


def tool_checks() -> Mapping[str, Callable[[Conversation], Fault | None]]:
    """Return the checks of this module by id."""
    return {"tool-call": find_wrong_call}


def find_wrong_call(conversation: Conversation) -> Fault | None:
    """Find a call that no program could carry out."""
    defined, said = _definitions(conversation), ""
    for message, following in pairwise([*conversation, None]):
        assert message is not None
        if message.role != "assistant":
            said += message.content
        elif message.metadata:
            for why in _wrong_in_call(message, defined):
                return Fault("warning", why, around(message.content, 0, 0))
            if following is not None and following.role != "observation":
                why = (
                    f"the call of {message.metadata[:40]!r} has no result: the next turn is from "
                    f"{following.role}"
                )
                return Fault("warning", why, around(message.content, 0, 0))
        elif (call := _PLAIN_CALL.match(message.content)) and not (
            not defined and _ASKS_FOR_JSON.search(said)
        ):
            why = "a call of a tool is written as a plain answer, so chat would show it to the user"
            return Fault("warning", why, around(message.content, *call.span()))
    return None


def _definitions(conversation: Conversation) -> Mapping[str, Mapping[str, Any]]:
    """Return the parameters of each tool that the conversation has."""
    defined: dict[str, Mapping[str, Any]] = {}
    for message in conversation:
        tools = message.tools if isinstance(message.tools, list) else [message.tools]
        for tool in tools:
            if not isinstance(tool, dict):
                continue
            inner = tool.get("function")
            definition = inner if isinstance(inner, dict) else tool
            name, parameters = definition.get("name"), definition.get("parameters")
            if isinstance(name, str):
                defined[name] = parameters if isinstance(parameters, dict) else {}
    return defined


def _wrong_in_call(message: Message, defined: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with a call."""
    name = message.metadata
    if defined and name not in defined and name not in INTERPRETERS:
        yield f"{name[:40]!r} is called, but the tools of the row are {', '.join(defined)[:120]}"
    if name in INTERPRETERS and TOOL_FUNCTION not in message.content:
        return
    try:
        arguments = parse_tool_call(message.content)
    except ValueError as error:
        yield f"the call of {name[:40]!r} cannot be read back: {str(error)[:160]}"
        return
    parameters = defined.get(name, {})
    required, known = parameters.get("required"), parameters.get("properties")
    if isinstance(required, list):
        missing = [str(each) for each in required if each not in arguments]
        if missing:
            yield (
                f"the call of {name[:40]!r} lacks {', '.join(missing)[:80]}, which its definition "
                "requires"
            )
    if isinstance(known, dict) and known:
        if unknown := [each for each in arguments if each not in known]:
            yield (
                f"the call of {name[:40]!r} has {', '.join(unknown)[:80]}, which its definition "
                "does not know"
            )
        if not arguments and not isinstance(required, list) and len(known) > 0:
            yield f"the call of {name[:40]!r} has no arguments; its definition has {len(known)}"
