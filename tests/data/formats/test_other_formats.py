"""Rows of TRL, Dolly, BELLE, Firefly, XTuner, UltraChat and ms-swift, as each tool has them."""

import json
from typing import Any

import pytest
from tests.data.formats.rows import ROWS, SINGLE, WEATHER, read, row, user_and_assistant

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message, read_messages
from glmtune.data.formats import FORMATS, convert, convert_pair, detect, split_answer
from glmtune.data.rows import RowError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.base import IGNORE
from glmtune.template.chatglm import ChatGLMTemplate

CALL = "```python\ntool_call(city='北京')\n```"


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_format_is_found_by_its_columns_and_says_the_same(name: str) -> None:
    format = detect([row(**ROWS[name])])

    assert format.name == name
    if format.is_pair:
        better, worse = convert_pair(row(**ROWS[name]), format)
        assert (better.messages[-1].content, worse.messages[-1].content) == ("3 度。", "不知道。")
    else:
        assert convert(row(**ROWS[name]), format).messages == user_and_assistant("北京", "3 度。")


@pytest.mark.parametrize("name", SINGLE)
def test_the_prompt_of_a_row_is_that_of_the_same_chat(
    name: str, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "北京"},
    ]

    messages = read(**ROWS[name], system="简短", tools=[WEATHER])

    example = template.encode(Conversation(messages))
    first = next(i for i, label in enumerate(example.labels) if label != IGNORE)
    if name == "chatglm3":  # announces tools by a message of its own, as the official code does
        chat.insert(0, {"role": "system", "content": TOOLS_PROMPT, "tools": [WEATHER]})
        prompt = read_messages(chat)
    else:
        prompt = read_messages(chat, [WEATHER])
    assert example.input_ids[:first] == template.prompt_ids(Conversation(prompt))
    assert first > 20  # the tools are in it


def test_chatglm3s_own_fields_on_openais_messages_get_the_ids_of_chat(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "可用工具", "tools": [WEATHER]},
        {"role": "user", "content": "北京"},
        {"role": "assistant", "metadata": "get_weather", "content": CALL},
        {"role": "observation", "content": '{"t": 3}'},
        {"role": "assistant", "metadata": "", "content": "3 度"},
    ]
    in_chat = template.encode(Conversation(read_messages(messages)))
    renamed = [
        {"from": each["role"], "value": each["content"]}
        | {key: each[key] for key in ("tools", "metadata") if key in each}
        for each in messages
    ]

    for fields in ({"messages": messages}, {"conversations": messages}, {"conversations": renamed}):
        assert template.encode(Conversation(read(**fields))) == in_chat
    assert read(messages=messages)[2].metadata == "get_weather"
    with pytest.raises(RowError, match="tools beside the messages and others in a system message"):
        read(messages=messages, tools=[{"name": "other"}])


def test_a_system_text_beside_messages_is_the_first_message() -> None:
    for name in SINGLE:
        assert read(**ROWS[name], system="你是医生")[0] == Message("system", "你是医生"), name


# --- TRL ----------------------------------------------------------------------------------


def test_prompts_and_completions_of_trl_are_texts_or_messages() -> None:
    asked = [{"role": "system", "content": "简短"}, {"role": "user", "content": "q"}]
    answered = [{"role": "assistant", "content": "a"}]
    expected = (Message("system", "简短"), *user_and_assistant("q", "a"))

    assert read(prompt=asked, completion=answered) == expected
    assert read(prompt=asked, completion="a") == expected
    assert read(prompt="q", completion=answered) == expected[1:]
    announced = read(prompt=asked, completion=answered, tools=[WEATHER])[0]
    assert announced == Message("system", "简短", tools=[WEATHER])


def test_a_prompt_alone_is_a_question_of_the_earlier_format() -> None:
    format = detect([row(prompt="q")], needs_answer=False)

    assert format.name == "prompt_response"
    assert split_answer(row(prompt="q"), format) == (Conversation((Message("user", "q"),)), ())


# --- Dolly, BELLE, Firefly ----------------------------------------------------------------


def test_dolly_appends_the_context() -> None:
    fields = {
        "instruction": "谁？",
        "context": "甲来了。",
        "response": "甲",
        "category": "closed_qa",
    }

    assert read(**fields) == user_and_assistant("谁？\n甲来了。", "甲")
    assert read(**{**fields, "context": ""}) == user_and_assistant("谁？", "甲")


def test_belle_is_alpaca_or_sharegpt() -> None:
    turns = [{"from": "human", "value": "一"}, {"from": "assistant", "value": "1"}]

    assert read(instruction="一", input="", output="1") == user_and_assistant("一", "1")
    assert read(id="1", conversations=turns) == user_and_assistant("一", "1")


def test_rows_that_fit_an_earlier_format_are_read_as_before() -> None:
    assert detect([row(instruction="a", input="b", output="c", response="d")]).name == "alpaca"
    assert detect([row(prompt="a", response="b", completion="c")]).name == "prompt_response"
    assert detect([row(instruction="a", output="b", data=["c"])]).name == "alpaca"


def test_firefly_and_xtuner_have_questions_and_answers_in_turn() -> None:
    firefly = [{"human": "一", "assistant": "1"}, {"human": "二", "assistant": "2"}]
    xtuner = [{"system": "数数", "input": "一", "output": "1"}, {"input": "二", "output": "2"}]
    expected = (*user_and_assistant("一", "1"), *user_and_assistant("二", "2"))

    assert read(conversation=firefly, conversation_id=1, category="c", dataset="d") == expected
    assert read(conversation=xtuner) == (Message("system", "数数"), *expected)
    assert read(kind="NLI", input="一", target="1") == expected[:2]
    with pytest.raises(RowError, match=r"conversation\[0\]\.assistant': the answer is empty"):
        read(conversation=[{"human": "一", "assistant": " "}])
    with pytest.raises(RowError, match="not a mixture"):
        read(conversation=[*firefly, {"human": "三", "output": "3"}])


def test_ultrachat_has_texts_in_turn() -> None:
    assert read(id="0", data=["一", "1", "二", "2"]) == (
        *user_and_assistant("一", "1"), *user_and_assistant("二", "2")
    )  # fmt: skip
    assert read(data=["一", "1", "二"])[-1] == Message("user", "二")
    with pytest.raises(RowError, match=r"field 'data\[1\]': got the number 1"):
        read(data=["一", 1])
    with pytest.raises(RowError, match=r"field 'data\[1\]': the answer is empty"):
        read(data=["一", ""])
    with pytest.raises(RowError, match="no turn is an answer"):
        read(data=["一"])


# --- ms-swift -----------------------------------------------------------------------------


def swift_call(name: str, **arguments: Any) -> dict[str, Any]:
    call = {"name": name, "arguments": arguments}
    return {"role": "tool_call", "content": json.dumps(call, ensure_ascii=False)}


SWIFT: list[dict[str, Any]] = [
    {"role": "user", "content": "甲几岁"},
    swift_call("get_weather", city="北京"),
    {"role": "tool_response", "content": '{"age": 31}'},
    {"role": "assistant", "content": "31 岁。"},
]


def test_agent_rows_of_swift_are_calls_and_their_results() -> None:
    tools = json.dumps([{"type": "function", "function": WEATHER}])
    expected = (
        Message("system", TOOLS_PROMPT, tools=[WEATHER]),
        Message("user", "甲几岁"),
        Message("assistant", CALL, metadata="get_weather"),
        Message("observation", '{"age": 31}'),
        Message("assistant", "31 岁。"),
    )

    assert read(messages=SWIFT, tools=tools) == expected
    assert read(conversations=SWIFT, tools=tools) == expected
    renamed = [{"from": each["role"], "value": each["content"]} for each in SWIFT]
    assert read(conversations=renamed, tools=tools) == expected


def test_calls_of_swift_that_follow_each_other_are_each_followed_by_their_result() -> None:
    results = [{"role": "tool_response", "content": f"of {name}"} for name in "fg"]
    messages = [SWIFT[0], swift_call("f"), swift_call("g"), *results, SWIFT[-1]]

    found = read(messages=messages)

    assert [each.metadata or each.content for each in found] == [
        "甲几岁", "f", "of f", "g", "of g", "31 岁。"
    ]  # fmt: skip
    one_result = [SWIFT[0], swift_call("f"), swift_call("g"), results[0], SWIFT[-1]]
    assert [each.metadata or each.content for each in read(messages=one_result)] == [
        "甲几岁", "f", "g", "of f", "31 岁。"
    ]  # fmt: skip


def test_a_call_that_is_no_call_is_refused() -> None:
    for content in ("get()", '{"arguments": {}}', "3"):
        broken = [SWIFT[0], {"role": "tool_call", "content": content}]
        with pytest.raises(RowError, match=r"messages\[1\].content"):
            read(messages=broken)


# --- Pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chosen_rejected", "rejected_response"])
def test_a_pair_that_lacks_a_side_is_a_bad_row_for_every_reader(name: str) -> None:
    format = FORMATS[name]
    for side in format.required:
        for lacking in ({}, {side: None}):
            fields = {key: value for key, value in ROWS[name].items() if key != side} | lacking
            for reader in (convert, convert_pair, split_answer):
                with pytest.raises(RowError, match=f"field '{side}': this answer of the pair is"):
                    reader(row(**fields), format)  # type: ignore[operator]


def test_a_file_whose_first_row_lacks_a_side_has_pairs_all_the_same() -> None:
    lacking = row(prompt="q", response="a")
    pair = row(query="q", response="a", rejected_response="b")

    assert detect([lacking, pair]).name == "rejected_response"
