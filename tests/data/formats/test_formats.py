import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.data.formats import FORMATS, KeyScan, Notes, check_roles, convert, detect
from glmtune.data.rows import Row, RowError
from glmtune.data.sources import read_rows
from glmtune.errors import DataError
from glmtune.tool_calls import parse_tool_call

WEATHER = {"name": "get_weather", "description": "天气", "parameters": {"type": "object"}}
CALL = "```python\ntool_call(city='北京')\n```"


def row(**fields: Any) -> Row:
    return Row(fields, "rows.json", 7)


def read(**fields: Any) -> tuple[Message, ...]:
    """Find the format of one row and read it."""
    return convert(row(**fields), detect([row(**fields)])).messages


def user_and_assistant(question: str, answer: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", answer)


# --- Questions and answers ----------------------------------------------------------------


def test_alpaca_joins_instruction_and_input_by_a_newline_and_strips_the_result() -> None:
    assert read(instruction=" 解释 ", input="4/16", output=" 是 ") == user_and_assistant(
        "解释 \n4/16", " 是 "
    )
    assert read(instruction="解释", input="", output="是") == user_and_assistant("解释", "是")
    assert read(instruction="解释", output="是") == user_and_assistant("解释", "是")


def test_alpaca_history_and_system_come_first() -> None:
    messages = read(
        instruction="三", input=None, output="3", system="数数", history=[["一", "1"], ["二", "2"]]
    )

    assert messages == (
        Message("system", "数数"),
        *user_and_assistant("一", "1"),
        *user_and_assistant("二", "2"),
        *user_and_assistant("三", "3"),
    )


@pytest.mark.parametrize(
    ("question", "answer"),
    [("prompt", "response"), ("query", "response"), ("question", "answer"), ("content", "summary")],
)
def test_a_question_and_an_answer_are_taken_as_they_are(question: str, answer: str) -> None:
    fields = {question: " 类型#裤 ", answer: "宽松\n", "id": 3}

    assert read(**fields) == user_and_assistant(" 类型#裤 ", "宽松\n")
    assert detect([row(**fields)]).name == f"{question}_{answer}"


def test_history_in_a_csv_cell_is_json_text() -> None:
    messages = read(query="二", response="2", history='[["一", "1"]]')

    assert messages == (*user_and_assistant("一", "1"), *user_and_assistant("二", "2"))
    assert read(query="二", response="2", history="") == user_and_assistant("二", "2")


# --- ShareGPT -----------------------------------------------------------------------------


def test_sharegpt_reads_tools_calls_and_observations() -> None:
    messages = read(
        conversations=[
            {"from": "human", "value": "北京天气"},
            {
                "from": "function_call",
                "value": '{"name": "get_weather", "arguments": {"city": "北京"}}',
            },
            {"from": "observation", "value": '{"celsius": 3}'},
            {"from": "gpt", "value": "3 度"},
        ],
        tools=json.dumps([WEATHER]),
    )

    assert messages == (
        Message("system", TOOLS_PROMPT, tools=[WEATHER]),
        Message("user", "北京天气"),
        Message("assistant", CALL, metadata="get_weather"),
        Message("observation", '{"celsius": 3}'),
        Message("assistant", "3 度"),
    )


@pytest.mark.parametrize("tools", ["[]", "", None, []])
def test_sharegpt_without_tools_announces_none(tools: Any) -> None:
    conversations = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

    assert read(conversations=conversations, tools=tools) == user_and_assistant("a", "b")


def test_sharegpt_puts_the_tools_of_a_row_on_its_system_message() -> None:
    conversations = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

    messages = read(conversations=conversations, tools=[WEATHER], system="简短")

    assert messages[0] == Message("system", "简短", tools=[WEATHER])


def test_several_calls_at_once_are_each_followed_by_their_result() -> None:
    calls: list[dict[str, Any]] = [{"name": name, "arguments": {}} for name in ("f", "g")]
    messages = read(
        conversations=[
            {"from": "human", "value": "both"},
            {"from": "function_call", "value": json.dumps(calls)},
            {"from": "observation", "value": "of f"},
            {"from": "observation", "value": "of g"},
            {"from": "gpt", "value": "done", "loss": False},
        ]
    )

    assert [(message.metadata, message.content) for message in messages[1:5]] == [
        ("f", "```python\ntool_call()\n```"),
        ("", "of f"),
        ("g", "```python\ntool_call()\n```"),
        ("", "of g"),
    ]
    assert [message.is_learned for message in messages] == [None, None, None, None, None, False]


# --- OpenAI -------------------------------------------------------------------------------


def test_openai_reads_tools_calls_parts_and_weights() -> None:
    call = {
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "北京"}'},
    }
    messages = read(
        messages=[
            {"role": "developer", "content": "简短"},
            {"role": "user", "content": [{"type": "text", "text": "北"}, {"text": "京"}]},
            {"role": "assistant", "content": "查一下", "tool_calls": [{"id": "1", **call}]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "assistant", "content": "3 度", "weight": 1},
            {"role": "user", "content": "谢谢"},
            {"role": "assistant", "content": "不谢", "weight": 0},
        ],
        tools=[{"type": "function", "function": WEATHER}],
    )

    assert messages == (
        Message("system", "简短", tools=[WEATHER]),
        Message("user", "北京"),
        Message("assistant", "查一下"),
        Message("assistant", CALL, metadata="get_weather"),
        Message("observation", "3"),
        Message("assistant", "3 度", is_learned=True),
        Message("user", "谢谢"),
        Message("assistant", "不谢", is_learned=False),
    )


def test_openai_results_find_their_call_by_its_id() -> None:
    calls: list[dict[str, Any]] = [
        {"id": name, "function": {"name": name, "arguments": {}}} for name in ("f", "g")
    ]
    messages = read(
        messages=[
            {"role": "user", "content": "both"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "g", "content": "of g"},
            {"role": "tool", "tool_call_id": "f", "content": "of f"},
            {"role": "assistant", "content": "done"},
        ]
    )

    assert [m.metadata or m.content for m in messages] == ["both", "f", "of f", "g", "of g", "done"]


def test_openai_reads_the_old_function_call() -> None:
    messages = read(
        messages=[
            {"role": "user", "content": "北京天气"},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "get_weather", "arguments": '{"city": "北京"}'},
            },
            {"role": "function", "name": "get_weather", "content": "3"},
            {"role": "assistant", "content": "3 度"},
        ],
        functions=[WEATHER],
    )

    assert messages[0] == Message("system", TOOLS_PROMPT, tools=[WEATHER])
    assert messages[2:4] == (
        Message("assistant", CALL, metadata="get_weather"),
        Message("observation", "3"),
    )


# --- The official format ------------------------------------------------------------------


def test_the_official_format_reads_tools_observations_and_loss_flags() -> None:
    messages = read(
        tools=[WEATHER],
        conversations=[
            {"role": "system", "content": "再加一条", "loss": True},
            {"role": "user", "content": "北京天气", "loss": True},
            {
                "role": "tool",
                "name": "get_weather",
                "parameters": {"city": "北京"},
                "observation": {"描述": "晴"},
                "loss": False,
            },
            {"role": "assistant", "content": "晴", "loss": True},
            {"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}},
            {"role": "assistant", "content": ""},
        ],
    )

    assert messages == (
        Message("system", TOOLS_PROMPT, tools=[WEATHER]),
        Message("system", "再加一条"),
        Message("user", "北京天气"),
        Message("assistant", CALL, metadata="get_weather", is_learned=False),
        Message("observation", '{"描述": "晴"}'),
        Message("assistant", "晴", is_learned=True),
        Message("assistant", CALL, metadata="get_weather"),
        Message("observation", "null"),
        Message("assistant", ""),
    )


def test_in_the_official_format_an_empty_list_of_tools_is_announced() -> None:
    conversations = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

    announced = Message("system", TOOLS_PROMPT, tools=[])
    assert read(tools=[], conversations=conversations)[0] == announced
    assert read(conversations=conversations)[0] == Message("user", "a")


def test_every_real_conversation_of_the_official_format_is_read(golden: Path) -> None:
    cases = json.loads((golden / "sft.json").read_text(encoding="utf-8"))["multi_turn"]
    for case in cases:
        conversation = convert(row(**case["item"]), FORMATS["chatglm3"])
        assert detect([row(**case["item"])]).name == "chatglm3"
        assert isinstance(conversation, Conversation)
    assert len(cases) == 30


def test_every_real_row_is_read(shared: Path) -> None:
    found = {}
    for name in ("alpaca_zh_1000", "toolcall_zh", "identity"):
        rows = list(read_rows(shared / "data" / f"{name}.json"))
        format = detect(rows)
        found[name] = (format.name, sum(len(convert(row, format)) for row in rows))

    assert found == {
        "alpaca_zh_1000": ("alpaca", 2000),
        # 1,880 turns, and a system message for each of the 200 rows whose tools are not empty
        "toolcall_zh": ("sharegpt", 1880 + 200),
        "identity": ("alpaca", 182),
    }


# --- Columns and roles --------------------------------------------------------------------


def test_columns_and_roles_of_the_user_take_the_place_of_ours() -> None:
    strange = row(dialogue=[{"from": "bot", "value": "hi"}, {"from": "人", "value": "ho"}], x=1)
    columns, roles = {"conversations": "dialogue"}, {"bot": "assistant", "人": "human"}

    format = detect([strange], columns=columns)

    assert format.name == "sharegpt"
    assert convert(strange, format, columns, roles).messages == (
        Message("assistant", "hi"),
        Message("user", "ho"),
    )


def test_columns_may_be_exchanged() -> None:
    row_ = row(prompt="答", response="问")
    columns = {"prompt": "response", "response": "prompt"}

    messages = convert(row_, detect([row_], columns=columns), columns).messages

    assert messages == user_and_assistant("问", "答")


def test_unknown_columns_list_what_was_got_and_what_is_known() -> None:
    with pytest.raises(DataError) as caught:
        detect([row(q="a", a="b")])

    message = str(caught.value)
    assert message.startswith("rows.json:7: the columns are 'q', 'a': no known format.")
    assert "alpaca (instruction, output)" in message
    assert "data.columns: {instruction: their_column}" in message


def test_plain_text_is_reported_as_meant_for_pretraining() -> None:
    with pytest.raises(DataError, match="text alone is for pre-training"):
        detect([row(text="a")])


def test_columns_that_fit_two_formats_need_a_name() -> None:
    both = row(instruction="a", output="b", query="c", response="d")

    with pytest.raises(DataError, match=r"more than one format \(alpaca and query_response\)"):
        detect([both])
    assert detect([both], "query_response").name == "query_response"


def test_the_style_of_conversations_is_detected_by_the_first_row_that_has_a_message() -> None:
    empty = row(conversations=[])
    official = row(conversations=[{"role": "user", "content": "a"}])

    assert detect([empty, official]).name == "chatglm3"
    with pytest.raises(DataError, match="no message in 'conversations' has 'from'"):
        detect([empty, row(conversations=[{"speaker": "a"}])])


def test_wrong_names_of_formats_fields_columns_and_roles_are_refused() -> None:
    fields = row(instruction="a", output="b")
    with pytest.raises(DataError, match=r"'alpacca' is not known. Did you mean 'alpaca'"):
        detect([fields], "alpacca")
    with pytest.raises(DataError, match="needs the columns messages; messages is not among"):
        detect([fields], "openai")
    with pytest.raises(DataError, match=r"our field 'instruktion'.* Did you mean 'instruction'"):
        detect([fields], columns={"instruktion": "instruction"})
    with pytest.raises(DataError, match="'instruction' from column 'q', but the columns are"):
        detect([fields], columns={"instruction": "q"})
    with pytest.raises(DataError, match="maps 'bot' to 'robot', expected one of"):
        check_roles({"bot": "robot"})
    check_roles({"bot": "assistant", "f": "function_call", "human2": "user"})


@pytest.mark.parametrize("key", ["from", "first-name", "ａ", ""])
def test_a_call_with_names_that_are_no_keywords_reads_back(key: str) -> None:
    arguments = {key: "北京", "to": "上海"}
    call = json.dumps({"name": "book", "arguments": arguments})
    of_sharegpt = read(
        conversations=[
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "ok"},
            {"from": "gpt", "value": "a"},
        ]
    )
    of_chatglm3 = read(
        conversations=[
            {"role": "user", "content": "q"},
            {"role": "tool", "name": "book", "parameters": arguments, "observation": "ok"},
            {"role": "assistant", "content": "a"},
        ]
    )

    for messages in (of_sharegpt, of_chatglm3):
        assert messages[1].metadata == "book"
        assert parse_tool_call(messages[1].content) == arguments


@pytest.mark.parametrize("name", ["\t", " ", "a\nb", "get_weather "])
def test_a_call_of_a_tool_whose_name_a_reply_cannot_repeat_is_refused_before_training(
    name: str,
) -> None:
    call = {"role": "tool", "name": name, "parameters": {}, "observation": "ok"}
    with pytest.raises(RowError, match=r"rows.json:7: .*the name of a tool.*one line"):
        read(conversations=user_and(call))
    with pytest.raises(RowError, match=r"rows.json:7: .*the name of a tool.*one line"):
        read(messages=user_and({"role": "assistant", "tool_calls": [{"name": name}]}))


# --- Rows that cannot be read -------------------------------------------------------------


def human_and(*turns: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"from": "human", "value": "q"}, *turns]


def user_and(*turns: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "q"}, *turns]


NAMELESS = {"function": {"arguments": "{}"}}


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"instruction": "q", "output": ""}, "output", "the answer is empty"),
        ({"instruction": "q", "output": " \n"}, "output", "the answer is empty"),
        ({"instruction": "q", "output": None}, "output", "missing or null, expected text"),
        ({"instruction": None, "output": "a"}, "instruction", "missing or null"),
        ({"instruction": "q", "output": 3}, "output", "got the number 3, expected text"),
        ({"instruction": True, "output": "a"}, "instruction", "got true"),
        ({"instruction": ["q"], "output": "a"}, "instruction", "got a list"),
        ({"instruction": "q", "input": {}, "output": "a"}, "input", "got an object"),
        ({"query": "q", "response": "a", "history": [["q"]]}, "history[0]", "list of two texts"),
        ({"query": "q", "response": "a", "history": [["q", ""]]}, "history[0]", "is empty"),
        ({"query": "q", "response": "a", "history": "[["}, "history", "not valid JSON"),
        ({"query": "q", "response": "a", "history": {"q": 1}}, "history", "got an object"),
        ({"conversations": "oops"}, "conversations", "not valid JSON"),
        ({"conversations": ["oops"]}, "conversations[0]", "expected a message object"),
        ({"conversations": human_and()}, "conversations", "no turn is an answer"),
        (
            {"conversations": human_and({"from": "bot", "value": "a"})},
            "conversations[1].from",
            "the turn is from 'bot', expected one of human, .*data.roles: {bot: assistant}",
        ),
        (
            {"conversations": human_and({"from": "gpt", "value": ""})},
            "conversations[1].value",
            "the answer is empty",
        ),
        (
            {"conversations": human_and({"from": "gpt"})},
            "conversations[1].value",
            "missing or null",
        ),
        (
            {"conversations": human_and({"from": "function_call", "value": "get()"})},
            "conversations[1].value",
            "not valid JSON",
        ),
        (
            {"conversations": human_and({"from": "function_call", "value": '{"arguments": {}}'})},
            "conversations[1].value",
            "without a name",
        ),
        (
            {"conversations": human_and({"from": "gpt", "value": "a", "loss": -0.5})},
            "conversations[1].value.loss",
            "expected true, false, or a weight",
        ),
        (
            {"conversations": human_and({"from": "human", "value": "q2"})},
            "conversations",
            r"turns 0 and 1 are both from the user.*\(The turns, from 0: user, user\.\)",
        ),
        (
            {"conversations": human_and({"from": "observation", "value": "o"})},
            "conversations",
            "turn 1 is an observation after a user message",
        ),
        (
            {"conversations": human_and({"from": "gpt", "value": "a"}), "tools": "[{]"},
            "tools",
            "not valid JSON",
        ),
        (
            {"conversations": human_and({"from": "gpt", "value": "a"}), "tools": '{"a": NaN}'},
            "tools",
            "NaN is not JSON",
        ),
        (
            {"conversations": human_and({"from": "gpt", "value": "a"}), "tools": {"name": "f"}},
            "tools",
            "got an object, expected a list of tools",
        ),
        (
            {"conversations": user_and({"role": "assistant", "tool_calls": [NAMELESS]})},
            "conversations[1].tool_calls",
            "these are OpenAI's messages. Set data.format: openai",
        ),
        ({"messages": []}, "messages", "the conversation is empty"),
        ({"messages": None}, "messages", "got null, expected a list"),
        ({"messages": user_and({"content": "a"})}, "messages[1].role", "no 'role'"),
        (
            {"messages": human_and()},
            "messages[0].role",
            "set data.format: sharegpt, data.columns: {conversations: messages}",
        ),
        (
            {"messages": user_and({"role": "assistant", "content": None})},
            "messages[1].content",
            "missing or null",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages[0].content",
            "a part of type 'image_url'",
        ),
        (
            {"messages": user_and({"role": "assistant", "tool_calls": [NAMELESS]})},
            "messages[1].tool_calls",
            "without a name",
        ),
        (
            {"messages": user_and({"role": "system", "content": "s"})},
            "messages",
            "turn 1 is a system message after a user message",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_line_field_and_reason(
    fields: dict[str, Any], field: str, reason: str
) -> None:
    good = {"conversations": human_and({"from": "gpt", "value": "a"})}
    sample = [row(**fields), row(**good)] if "conversations" in fields else [row(**fields)]
    format = detect(sample)

    with pytest.raises(RowError, match=reason) as caught:
        convert(row(**fields), format)

    assert (caught.value.bad.field, caught.value.bad.line) == (field, 7)
    assert str(caught.value).startswith(f"rows.json:7: field {field!r}: ")


def test_half_a_surrogate_pair_is_a_bad_row() -> None:
    lone = json.loads('"\\ud83d"')

    with pytest.raises(RowError, match=r"rows.json:7: half of a surrogate pair, '\\ud83d'"):
        read(instruction="q", output=lone)
    with pytest.raises(RowError, match="surrogate"):
        read(messages=user_and({"role": "assistant", "content": "a"}), tools=[{"name": lone}])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "tool_calls", "name", "loss"]),
            children,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON, format=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_whatever_a_row_holds_it_is_read_or_refused_as_that_row(
    value: Any, format: str, data: st.DataObject
) -> None:
    chosen = FORMATS[format]
    good: Any = {"conversations": human_and(), "messages": user_and(), "data": ["q", "a"]}
    good["conversation"] = [{"human": "q", "assistant": "a"}]
    fields = {name: data.draw(st.just(good.get(name, "a")) | JSON) for name in chosen.required}
    fields |= {name: data.draw(JSON) for name in chosen.optional}
    fields[data.draw(st.sampled_from([*chosen.required, *chosen.optional]))] = value

    with contextlib.suppress(RowError):
        assert len(convert(row(**fields), chosen)) > 0
        KeyScan(chosen, {}, {}).note(row(**fields), Notes())
