"""Messages as programs write them become turns, and a tool call is parsed without being run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from glmtune.conversation import TOOLS_PROMPT, Message, check_turns, read_messages
from glmtune.errors import TemplateError
from glmtune.tool_calls import MAX_DEPTH, check_tool_name, parse_tool_call, render_tool_call


def _call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_tool_call_is_written_as_chatglm3_writes_it_and_reads_back() -> None:
    arguments = {"city": "北京", "days": 2, "units": ["c", "f"], "quote": "a \"b\" 'c'\n"}

    text = render_tool_call(arguments)

    assert text.splitlines()[0] == "```python"
    assert text.startswith("```python\ntool_call(city='北京', days=2, units=['c', 'f'], quote=")
    assert parse_tool_call(text) == arguments


NAMES = [
    *("a", "city", "from", "class", "None", "True", "__debug__", "match", "print", "self", "x1"),
    *("first-name", "two words", "", " ", "1st", "a.b", "q'\"", "a=1", "}", "**", "\n", "\\", "\0"),
    *("城市", "ａ", "a", "ﬁ", "fi", "ℌ", "é", "e\u0301", "ſ", "s", "\u2028", "\ufeff", "😀", "#"),
]
NUMBERS = [0, -1, 10**400, -(10**4299), 0.0, -0.0, 1e300, 5e-324, -1.5, 0.1 + 0.2, 2**63]


def random_json(rng: random.Random, depth: int = 0) -> Any:
    """Make a JSON value of any kind, small and seldom deep."""
    kind = rng.randrange(8 if depth < 4 else 6)
    if kind == 7:
        return random_object(rng, depth)
    if kind == 6:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind > 3:
        codes = (rng.choice((rng.randrange(128), rng.randrange(0x3000, 0xD800))) for _ in range(6))
        return "".join(map(chr, codes)) + rng.choice(NAMES)
    return rng.choice((None, True, False, rng.choice(NUMBERS), rng.random(), rng.choice(NAMES)))


def random_object(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    return {rng.choice(NAMES): random_json(rng, depth + 1) for _ in range(rng.randrange(6))}


def test_every_json_object_reads_back_and_so_does_it_with_the_eval_of_the_original() -> None:
    rng = random.Random(18)
    kinds = set()

    for _ in range(3000):
        arguments = random_object(rng)
        text = render_tool_call(arguments)
        source = text.split("\n")[1]
        read = parse_tool_call(text)
        evaluated = eval(source, {"__builtins__": {}, "tool_call": lambda **given: given})
        # As texts, since -0.0 == 0.0 and True == 1; in the order that was given.
        assert json.dumps(read) == json.dumps(evaluated) == json.dumps(arguments), source
        kinds.add("**" in source.split("=")[0])

    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        ({}, "tool_call()"),
        ({"match": 1, "_": 2}, "tool_call(match=1, _=2)"),
        ({"城市": -0.0}, "tool_call(城市=-0.0)"),
        ({"from": "北京", "to": "上海"}, "tool_call(**{'from': '北京', 'to': '上海'})"),
        ({"a": 1, "first-name": [None]}, "tool_call(**{'a': 1, 'first-name': [None]})"),
        ({"ａ": "full width"}, "tool_call(**{'ａ': 'full width'})"),
        ({"": {"b": True}}, "tool_call(**{'': {'b': True}})"),
    ],
)
def test_a_name_that_python_cannot_spell_is_written_in_an_object(
    arguments: dict[str, Any], source: str
) -> None:
    assert render_tool_call(arguments) == f"```python\n{source}\n```"
    assert parse_tool_call(f"```python\n{source}\n```") == arguments


def test_a_reply_may_mix_both_spellings() -> None:
    text = "```python\ntool_call(a=1, **{'from': 2}, b='\\d', **{'class': 3})\n```"

    assert parse_tool_call(text) == {"a": 1, "from": 2, "b": "\\d", "class": 3}


def test_what_only_python_has_is_read_as_json_has_it() -> None:
    text = "```python\ntool_call(a=(1, 2), b={1: None})\n```"

    assert parse_tool_call(text) == {"a": [1, 2], "b": {"1": None}}


class Nested(dict[str, Any]):
    """A dict whose repr is no literal."""

    def __repr__(self) -> str:
        return "Nested(...)"


def test_a_value_of_another_mapping_type_is_written_as_an_object() -> None:
    text = render_tool_call({"a": Nested(b=(1, 2))})

    assert text == "```python\ntool_call(a={'b': [1, 2]})\n```"


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"a": {"b": [1, float("nan")]}}, r"the argument 'a.b\[1\]' is nan, which JSON cannot"),
        ({"a": float("-inf")}, "the argument 'a' is -inf"),
        ({"a": "\ud800"}, r"the argument 'a' has half of a surrogate pair, '\\ud800'"),
        ({"\udfff": 1}, "a name has half of a surrogate pair"),
        ({"a": {"\udfff": 1}}, "a name in the argument 'a' has half"),
        ({"a": 10**4400}, "has more digits than Python reads. Pass it as text"),
        ({"a": {1: 2}}, "a name in the argument 'a' is a value of type int, expected text"),
        ({3: 2, "b": 1}, "a name is a value of type int"),
        ({"a": {1, 2}}, "is a value of type set, expected a JSON value"),
        ({"a": b"x"}, "is a value of type bytes"),
        ({"a": deep(MAX_DEPTH)}, "nested more than 100 deep"),
    ],
)
def test_what_a_call_cannot_say_is_refused_by_name(
    arguments: dict[Any, Any], complaint: str
) -> None:
    with pytest.raises(TemplateError, match=complaint):
        render_tool_call(arguments)


def test_the_deepest_call_that_is_written_reads_back() -> None:
    arguments = {"from": deep(MAX_DEPTH - 1)}

    assert parse_tool_call(render_tool_call(arguments)) == arguments


@pytest.mark.parametrize("name", ["", " ", "a\nb", " a", "a ", "a\t", "\u3000a", "\ud800", 3, None])
def test_a_tool_whose_name_a_reply_could_not_repeat_is_refused(name: Any) -> None:
    with pytest.raises(TemplateError, match="the name of a tool"):
        check_tool_name(name)


def test_a_tool_may_have_any_name_of_one_line() -> None:
    for name in ("get_weather", "天气 查询", "a.b-c", "class", "a\rb"):
        check_tool_name(name)


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
        "tool_call(a=1, **{'a': 2})",
        "tool_call(**{'a': 1, 'a': 2})",
        "tool_call(**{1: 2})",
        "tool_call(**{b: 2})",
        "tool_call(**{**{}})",
        "tool_call(**b)",
        "tool_call(**[1])",
        "tool_call(a='\\ud800')",
        "tool_call(**{'\\ud800': 1})",
        "tool_call(a=0x1" + "0" * 4400 + ")",
        "tool_call(a=" + "-" * 100_000 + "1)",
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
        ({"role": "assistant", "tool_calls": [_call("t", "[1]")]}, "expected an object"),
        ({"role": "assistant", "tool_calls": [{}]}, "has a tool call"),
        ("hello", "message 0 is 'hello', expected an object"),
        (None, "message 0 is None"),
        ({"role": ["user"], "content": "x"}, "message 0 is from a value of type list"),
        ({"role": "user", "content": "\ud800"}, "the content of message 0 .*half of a surrogate"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "of type list"),
        (
            {"role": "user", "content": [{"type": "image_url", "text": "x"}]},
            "ChatGLM3 reads text only",
        ),
        ({"role": "assistant", "content": "x", "metadata": 3}, "its metadata is a value of type"),
        ({"role": "tool", "content": {1, 2}}, "has a content that is not JSON"),
        ({"role": "tool", "content": deep(100_000)}, "has a content that is not JSON"),
        ({"role": "system", "content": "x", "tools": {1}}, "the tools of message 0 are not JSON"),
        ({"role": "system", "content": "x", "tools": deep(500)}, "nested more than 100 deep"),
        ({"role": "assistant", "tool_calls": "get()"}, r"'get\(\)' in its tool_calls, expected a"),
        ({"role": "assistant", "tool_calls": 3}, "a value of type int in its tool_calls"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, "a value of type dict in its tool_"),
        ({"role": "assistant", "tool_calls": [None]}, "None in its tool_calls"),
        ({"role": "assistant", "function_call": "f"}, "'f' in its function_call"),
        ({"role": "user", "tool_calls": [_call("t", {})]}, "only an assistant makes"),
        ({"tool_calls": [_call("t", {})]}, "message 0 is from None"),
        ({"role": "assistant", "tool_calls": [{"function": "f"}]}, "whose function is 'f'"),
        ({"role": "assistant", "tool_calls": [_call("a\nb", {})]}, r"calls 'a\\nb': the name of a"),
        ({"role": "assistant", "tool_calls": [_call("t", '{"a": NaN}')]}, "NaN is not a number"),
        ({"role": "assistant", "tool_calls": [_call("t", '{"a":1,"a":2}')]}, "'a' is given twice"),
        ({"role": "assistant", "tool_calls": [_call("t", "[" * 100_000)]}, "that are not JSON"),
        ({"role": "assistant", "tool_calls": [_call("t", '{"a":' + "1" * 5000 + "}")]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [_call("t", {"a": float("nan")})]}, "'a' is nan"),
    ],
)
def test_a_message_that_cannot_be_read_is_named(message: Any, complaint: str) -> None:
    with pytest.raises(TemplateError, match=complaint):
        read_messages([message])


@pytest.mark.parametrize("messages", ["hello", b"x", {"role": "user"}, 3, None])
def test_messages_that_are_no_list_are_refused(messages: Any) -> None:
    with pytest.raises(TemplateError, match=r"the messages are .*, expected a list"):
        read_messages(messages)


@pytest.mark.parametrize("tools", ["get_weather", {"name": "t"}, 3, [{1}], [deep(500)]])
def test_tools_that_are_no_list_of_json_are_refused(tools: Any) -> None:
    with pytest.raises(TemplateError, match="the tools are"):
        read_messages([{"role": "user", "content": "u"}], tools)


def test_tools_given_in_two_places_are_not_dropped_without_a_word() -> None:
    system = {"role": "system", "content": "s", "tools": [{"name": "a"}]}

    assert read_messages([system], [{"name": "a"}])[0].tools == [{"name": "a"}]
    with pytest.raises(TemplateError, match="has tools of its own"):
        read_messages([system], [{"name": "b"}])


def test_the_older_function_call_is_read_as_a_tool_call() -> None:
    call = {"name": "w", "arguments": '{"class": 1}'}
    [message] = read_messages([{"role": "assistant", "content": None, "function_call": call}])

    assert message == Message("assistant", render_tool_call({"class": 1}), metadata="w")


JUNK: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        float("nan"),
        "",
        "x",
        "\ud800",
        "\0",
        b"x",
        [],
        {},
        [[]],
        {"": None},
    ),
    *({1, 2}, object(), [None], ["x"], {"role": 1}, 10**5000, deep(2000), {1: 2}, (), range(3)),
    *({"function": None}, {"function": {"name": "f"}}, '{"a": 1}', "[1]", '{"a": 1, "a": 2}'),
]
HEALTHY: list[dict[str, Any]] = [
    {"role": "system", "content": "s", "tools": [{"name": "t"}]},
    {"role": "user", "content": [{"type": "text", "text": "q"}]},
    {"role": "assistant", "content": "r", "tool_calls": [_call("t", {"a": [1]}, "1")]},
    {"role": "tool", "tool_call_id": "1", "content": {"celsius": 3}},
    {"role": "assistant", "tool_calls": [_call("a", "{}", "2"), _call("b", {}, "3")]},
    {"role": "tool", "tool_call_id": "3", "content": "y"},
    {"role": "tool", "tool_call_id": "2", "content": None},
    {"role": "assistant", "content": "a", "metadata": ""},
]


def mutated(value: Any, rng: random.Random) -> Any:
    """Replace or remove one part of a value, at any depth."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(JUNK)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    changed = value.copy()
    key = rng.choice(keys)
    action = rng.random()
    if action < 0.1:
        del changed[key]
    elif action < 0.2 and isinstance(changed, list):
        changed.insert(key, rng.choice(JUNK))
    elif action < 0.2 and isinstance(changed, dict):
        changed[rng.choice(["tool_calls", "tools", "metadata", "function_call"])] = rng.choice(JUNK)
    else:
        changed[key] = mutated(value[key], rng)
    return changed


def test_any_messages_become_turns_that_can_be_encoded_or_one_error() -> None:
    rng = random.Random(22)
    outcomes, lengths = {True: 0, False: 0}, []

    for _ in range(4000):
        messages, tools = mutated(HEALTHY, rng), rng.choice([None, [{"name": "t"}], *JUNK])
        if rng.random() < 0.3:
            messages = mutated(messages, rng)
        try:
            turns = read_messages(messages, tools if rng.random() < 0.2 else None)
        except TemplateError as error:
            outcomes[False] += 1
            lengths.append(len(str(error)))
        else:
            outcomes[True] += 1
            for turn in turns:
                assert isinstance(turn.metadata, str)
                turn.text.encode()
                turn.metadata.encode()

    assert min(outcomes.values()) > 400, outcomes
    assert min(lengths) > 20
    assert max(lengths) < 600


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


def test_a_thought_goes_with_the_first_turn_of_its_message() -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}]
    asked = {"role": "user", "content": "q", "reasoning_content": "not the user's"}
    messages: list[dict[str, Any]] = [
        asked,
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "b", "reasoning_content": None},
    ]

    assert [m.reasoning for m in read_messages(messages)] == ["", "hm", "", "", ""]
    with pytest.raises(TemplateError, match=r"message 1 .* reasoning_content"):
        read_messages([asked, {"role": "assistant", "content": "a", "reasoning_content": [1]}])
