r"""Parse the text of a reply into an answer or a tool call, as `model.chat` returns it.

A reply begins with its metadata line, which is empty for an ordinary answer and names the
tool in a call; a remark may precede a call, with `<|assistant|>` between them.

    "\n 你好！"                                         -> "你好！"
    "get_weather\n ```python\ntool_call(city='北京')\n```" -> {"name": "get_weather",
                                                             "parameters": {"city": "北京"}}

Source: ChatGLM3, `process_response` in modeling_chatglm.py; the reference is spec section 8.4.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.conversation import checked_messages
from glmtune.model.chatglm.chat_format import split_reply
from glmtune.tool_calls import parse_tool_call


def process_response(
    output: str, history: Sequence[Mapping[str, Any]]
) -> tuple[str | dict[str, Any], list[dict[str, Any]]]:
    """Read a reply and append its messages to a copy of the history.

    Args:
        output: the decoded reply, without the prompt and without the stop token.
        history: the messages before it, as `{"role", "content"}` with optional
            `"metadata"` and `"tools"`. It is not changed.

    Raises:
        TemplateError: an item of the history is not a message.

    Returns:
        The content of the last message and the new history. The content is text, or
        `{"name", "parameters"}` for a tool call, or `{"name", "content"}` for code (and for
        any call when the history announces no tools). A tool call that cannot be read comes
        back as `{"name", "content", "error"}` with its text as it was.
    """
    extended = [dict(message) for message in checked_messages(history, "messages of the history")]
    first = extended[0] if extended else {}
    has_tools = first.get("role") == "system" and "tools" in first
    content: str | dict[str, Any] = ""
    for part in output.split("<|assistant|>"):
        metadata, text = split_reply(part)
        if not metadata.strip():
            text = text.strip()
            content = text.replace("[[训练时间]]", "2023年")
        else:
            content = _read_call(metadata.strip(), text, has_tools)
        extended.append({"role": "assistant", "metadata": metadata, "content": text})
    return content, extended


def _read_call(name: str, text: str, has_tools: bool) -> dict[str, Any]:
    """Parse the call of tool `name`; a malformed one is its text with an `error`."""
    if not has_tools:
        return {"name": name, "content": text}
    try:
        return {"name": name, "parameters": parse_tool_call(text)}
    except ValueError as error:
        return {"name": name, "content": text, "error": str(error)}
