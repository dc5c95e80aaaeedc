"""Messages as programs write them become turns, and a tool call is parsed without being run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glmtune.conversation import (
    TOOLS_PROMPT,
    Message,
    check_turns,
    parse_tool_call,
    read_messages,
    render_tool_call,
)
from glmtune.errors import TemplateError


def _call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_tool_call_is_written_as_chatglm3_writes_it_and_reads_back() -> None:
    arguments = {"city": "北京", "days": 2, "units": ["c", "f"], "quote": "a \"b\" 'c'\n"}

    text = render_tool_call(arguments)

    assert text.splitlines()[0] == "```python"
    assert text.startswith("```python\ntool_call(city='北京', days=2, units=['c', 'f'], quote=")
    assert parse_tool_call(text) == arguments


def test_a_call_is_never_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    attempts = [
        f"open({str(witness)!r}, 'w')",
        f"tool_call(a=open({str(witness)!r}, 'w'))",
        f"[tool_call(a=1), open({str(witness)!r}, 'w')]",
        f"tool_call(**{{'a': open({str(witness)!r}, 'w')}})",
        f"tool_call(a=f'{{open({str(witness)!r}, chr(119))}}')",
        f"(lambda: open({str(witness)!r}, 'w'))()",
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"tool_call|literal"):
            parse_tool_call(f"```python\n{attempt}\n```")

    assert not witness.exists()


@pytest.mark.parametrize(
    "source",
    [
        "",
        "tool_call(1)",
        "tool_call(*[1])",
        "tool_call(a=1, a=2)",
        "tool_call(a=b)",
        "tool_call(a={1, 2})",
        "tool_call(a=b'x')",
        "tool_call(a=1e999)",
        "tool_call(a=1+2j)",
        "other_call(a=1)",
        "tool_call",
        "tool_call(a=" + "(" * 5000,
        "tool_call(a='\0')",
    ],
)
def test_a_malformed_call_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"tool_call|literal"):
        parse_tool_call(f"```python\n{source}\n```")


def test_what_the_training_data_writes_is_what_the_reply_reads() -> None:
    arguments = {"城市": "北京\n'\"", "days": -2, "list": [1.5, None, True, {"k": "值"}]}

    assert parse_tool_call(render_tool_call(arguments)) == arguments


def test_a_system_message_is_encoded_with_the_tools_it_announces() -> None:
    tools = [{"name": "天气"}]
    assert (
        Message("system", "Hi", tools=tools).text
        == 'Hi\n[\n    {\n        "name": "天气"\n    }\n]'
    )
    assert Message("system", "Hi", tools=[]).text == "Hi\n[]"
    assert Message("system", "Hi").text == "Hi"
    assert Message("user", "Hi", tools=tools).text == "Hi"  # announced by system messages alone


def test_chatglm3_messages_are_taken_as_they_are() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s", "tools": [{"name": "t"}]},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "metadata": "t"},
        {"role": "observation", "content": "o"},
    ]
    assert read_messages(messages) == (
        Message("system", "s", tools=[{"name": "t"}]),
        Message("user", "u"),
        Message("assistant", "a", metadata="t"),
        Message("observation", "o"),
    )


def test_openai_messages_become_turns() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "北京"}, {"text": "天气"}]},
        {"role": "assistant", "content": "我看看", "tool_calls": [_call("w", '{"city": "北京"}')]},
        {"role": "tool", "content": {"celsius": 3}},
        {"role": "assistant", "content": None, "tool_calls": [_call("w", {})]},
        {"role": "function", "name": "w", "content": None},
        {"role": "assistant", "content": "3 度"},
    ]
    assert read_messages(messages) == (
        Message("system", "s"),
        Message("user", "北京天气"),
        Message("assistant", "我看看"),
        Message("assistant", "```python\ntool_call(city='北京')\n```", metadata="w"),
        Message("observation", '{"celsius": 3}'),
        Message("assistant", "```python\ntool_call()\n```", metadata="w"),
        Message("observation", "null"),
        Message("assistant", "3 度"),
    )


def test_calls_made_at_once_are_each_followed_by_their_result() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [_call("a", {}, "1"), _call("b", {}, "2")]},
        {"role": "tool", "tool_call_id": "2", "content": "of b"},
        {"role": "tool", "tool_call_id": "1", "content": "of a"},
        {"role": "assistant", "content": "done"},
    ]

    turns = read_messages(messages)

    assert [(turn.metadata, turn.content) for turn in turns[1:]] == [
        ("a", "```python\ntool_call()\n```"),
        ("", "of a"),
        ("b", "```python\ntool_call()\n```"),
        ("", "of b"),
        ("", "done"),
    ]
    check_turns(turns)


def test_tools_are_announced_by_the_first_system_message() -> None:
    user = {"role": "user", "content": "u"}
    tool = {"name": "t"}
    wrapped = {"type": "function", "function": tool}

    [system, _] = read_messages([user], tools=[wrapped])
    assert system == Message("system", TOOLS_PROMPT, tools=[tool])

    [system, _] = read_messages([{"role": "system", "content": "s"}, user], tools=[tool])
    assert system == Message("system", "s", tools=[tool])

    assert read_messages([user], tools=[]) == (Message("user", "u"),)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "bot", "content": "x"}, "message 0 is from 'bot', expected one of system"),
        ({"content": "x"}, "message 0 is from None"),
        ({"role": "user"}, r"message 0 \(user\) has a content of type NoneType"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "ChatGLM3 reads text only"),
        ({"role": "assistant", "tool_calls": [_call("t", "{")]}, "arguments that are not JSON"),
        ({"role": "assistant", "tool_calls": [_call("t", "[1]")]}, "has a tool call"),
        ({"role": "assistant", "tool_calls": [{}]}, "has a tool call"),
    ],
)
def test_a_message_that_cannot_be_read_is_named(message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TemplateError, match=complaint):
        read_messages([message])


@pytest.mark.parametrize(
    ("roles", "complaint"),
    [
        ("user system", "turn 1 is a system message after a user message"),
        ("user user", "turns 0 and 1 are both from the user"),
        ("observation", "turn 0 is an observation after nothing"),
        ("user observation", "turn 1 is an observation after a user message"),
        ("user bot", "turn 1 is from 'bot'"),
    ],
)
def test_turns_in_an_order_unknown_to_chatglm3_are_refused(roles: str, complaint: str) -> None:
    messages = [Message(role, "x") for role in roles.split()]  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match=complaint):
        check_turns(messages)


def test_turns_that_chatglm3_knows_pass() -> None:
    check_turns([])
    roles = [
        "system",
        "system",
        "user",
        "assistant",
        "assistant",
        "observation",
        "assistant",
        "user",
    ]
    check_turns([Message(role, "x") for role in roles])  # type: ignore[arg-type]
