"""The chat templates of GLM-4 and later train as ChatGLM3's does: ids, labels, ends and calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.formats.rows import ROWS, SINGLE
from tests.template.conversations import flags, learned, talk, texts
from tests.template.glm_templates import GLM_4_5, MARKS, SPECIAL, TEMPLATES, glm_tokenizer

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.data.formats import FORMATS, convert
from glmtune.data.rows import Row
from glmtune.errors import TemplateError
from glmtune.prove.prompts import check_template_agrees
from glmtune.template.base import IGNORE, is_learned
from glmtune.template.chat_template import ChatTemplate
from glmtune.template.glm import GlmTemplate
from glmtune.template.select import template_for
from glmtune.tool_calls import parse_tool_call, render_tool_call

TOKENIZERS = {name: glm_tokenizer(template) for name, template in TEMPLATES.items()}
GLMS = {name: GlmTemplate(tokenizer) for name, tokenizer in TOKENIZERS.items()}
WITH_METADATA = ("glm-4-9b", "glm-4-0414")
WITHOUT_OPENING = (*WITH_METADATA, "glm-4.5")
TOOLS = [{"name": "weather"}]
ANY = TOKENIZERS["glm-4.5"]  # all of them have the same vocabulary


def text(ids: list[int]) -> str:
    return str(ANY.decode(ids))


def call(arguments: dict[str, Any], name: str = "weather") -> Message:
    return Message("assistant", render_tool_call(arguments), metadata=name)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_is_found_by_the_tokenizer_and_stops_at_the_next_role(name: str) -> None:
    template = template_for(TOKENIZERS[name])

    assert isinstance(template, GlmTemplate)
    stops = ANY.convert_ids_to_tokens(list(template.stop_ids))
    assert stops == ["<|user|>", "<|observation|>", "<|endoftext|>"]
    assert template.fingerprint == GlmTemplate(glm_tokenizer(TEMPLATES[name])).fingerprint


def test_a_template_that_ends_its_answers_itself_is_read_as_any_other() -> None:
    closed = TEMPLATES["glm-4-0414"].replace("{{ shown }}", "{{ shown }}<|endoftext|>")

    template = template_for(glm_tokenizer(closed))

    assert type(template) is ChatTemplate
    assert template.stop_ids == (ANY.convert_tokens_to_ids("<|endoftext|>"),)


@pytest.mark.parametrize("name", WITHOUT_OPENING)
def test_an_answer_is_learned_with_the_role_that_comes_after_it(name: str) -> None:
    example = GLMS[name].encode(
        talk(
            ("system", "规则"),
            ("user", "一"),
            ("assistant", "甲"),
            ("user", "二"),
            ("assistant", "乙"),
        )
    )

    empty = "<think></think>\n" if name == "glm-4.5" else ""
    assert text(example.input_ids) == (
        "[gMASK]<sop><|system|>\n规则"
        f"<|user|>\n一<|assistant|>\n{empty}甲<|user|>\n二<|assistant|>\n{empty}乙<|user|>"
    )
    assert text(learned(example)) == f"\n{empty}甲<|user|>\n{empty}乙<|user|>"


WEATHER = talk(
    Message("system", TOOLS_PROMPT, tools=TOOLS),
    ("user", "北京"),
    ("assistant", "我查"),
    call({"city": "北京", "days": 2}),
    ("observation", "3"),
    ("assistant", "3 度"),
    ("user", "上海"),
    call({"city": "上海"}),
)


@pytest.mark.parametrize("name", WITH_METADATA)
def test_a_call_is_metadata_and_json_and_ends_with_the_observation(name: str) -> None:
    example = GLMS[name].encode(WEATHER)

    rendered = text(example.input_ids)
    assert rendered.startswith('[gMASK]<sop><|system|>\ntools:## weather\n{\n    "name": "weather"')
    assert TOOLS_PROMPT not in rendered  # ChatGLM3's own words
    assert text(learned(example)) == (
        '\n我查<|assistant|>weather\n{"city": "北京", "days": 2}<|observation|>'
        '\n3 度<|user|>weather\n{"city": "上海"}<|observation|>'
    )


def test_a_call_of_glm_4_5_is_delimited_by_control_tokens() -> None:
    example = GLMS["glm-4.5"].encode(WEATHER)

    assert "<|observation|>\n<tool_response>\n3\n</tool_response><|assistant|>" in text(
        example.input_ids
    )
    assert text(learned(example)) == (
        "\n<think></think>\n我查\n<tool_call>weather\n<arg_key>city</arg_key>\n"
        "<arg_value>北京</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n"
        "</tool_call><|observation|>\n<think></think>\n3 度<|user|>"
        "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n"
        "<arg_value>上海</arg_value>\n</tool_call><|observation|>"
    )


# ---- thoughts ----------------------------------------------------------------------------

THOUGHT = ("assistant", "<think>想</think>\n答")


@pytest.mark.parametrize("name", ["glm-z1", "glm-4.5"])
def test_the_thought_of_the_last_answer_is_learned(name: str) -> None:
    example = GLMS[name].encode(talk(("user", "问"), THOUGHT))

    assert text(example.input_ids) == (
        "[gMASK]<sop><|user|>\n问<|assistant|>\n<think>想</think>\n答<|user|>"
    )
    begins = "" if name == "glm-z1" else "\n<think>"  # of GLM-Z1 the prompt begins the thought
    assert text(learned(example)) == f"{begins}想</think>\n答<|user|>"


@pytest.mark.parametrize("name", ["glm-z1", "glm-4.5"])
def test_thoughts_of_earlier_answers_are_learned_only_where_the_prompt_shows_them(
    name: str,
) -> None:
    rows = (("user", "问"), THOUGHT, ("user", "又"), THOUGHT)

    with pytest.raises(TemplateError, match=r"data\.mask_history: true"):
        GLMS[name].encode(talk(*rows))

    conversation = Conversation(
        tuple(replace(m, is_learned=None if i == 3 else False) for i, m in enumerate(talk(*rows)))
    )
    example = GLMS[name].encode(conversation)  # as data.mask_history makes it
    prompt = GLMS[name].prompt_ids(Conversation(conversation.messages[:3]))
    assert example.input_ids[: len(prompt)] == prompt
    assert text(example.input_ids).count("想") == 1
    assert [label != IGNORE for label in example.labels].index(True) == len(prompt)


def test_an_answer_of_glm_z1_without_a_thought_closes_it_at_once() -> None:
    template = GLMS["glm-z1"]
    example = template.encode(talk(("user", "问"), ("assistant", "答")))

    assert text(learned(example)) == "</think>\n答<|user|>"
    assert template.parse(learned(example)) == [Message("assistant", "答")]


def test_what_glm_z1_cannot_write_is_refused() -> None:
    template = GLMS["glm-z1"]
    with pytest.raises(
        TemplateError, match=r"turn 1 is a call.*begins every answer with a thought"
    ):
        template.encode(talk(("user", "问"), call({})))
    with pytest.raises(TemplateError, match="turn 0 is an answer"):
        template.encode(talk(("assistant", "答")))
    unlike = TEMPLATES["glm-z1"].replace("<|assistant|>\n<think>", "<|assistant|>\n好")
    with pytest.raises(TemplateError, match="not the beginning"):
        GlmTemplate(glm_tokenizer(unlike))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_thought_in_its_own_field_is_written_where_the_template_has_a_place(name: str) -> None:
    template = GLMS[name]
    answer = Message("assistant", "答", reasoning="想")
    example = template.encode(talk(("user", "问"), answer))

    reads = name in ("glm-z1", "glm-4.5")
    assert template.reads_thoughts() is reads
    within = talk(("user", "问"), ("assistant", "<think>想</think>\n答" if reads else "答"))
    assert example == template.encode(within)


def test_the_thought_before_a_call_is_written_once() -> None:
    weather = replace(call({}), reasoning="想")
    for before in ([], [Message("assistant", "我查", reasoning="想")]):
        row = talk(("user", "问"), *before, weather if not before else call({}))
        rendered = text(GLMS["glm-4.5"].encode(row).input_ids)
        assert rendered.count("<think>想</think>") == 1


# ---- replies -----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(WITHOUT_OPENING),
    arguments=st.dictionaries(st.text(max_size=3), JSON, max_size=3),
    remark=st.sampled_from(["", "我查"]),
)
def test_a_call_is_read_back_as_it_was_written(
    name: str, arguments: dict[str, Any], remark: str
) -> None:
    if name == "glm-4.5":  # which writes texts and numbers alike
        arguments = {k: f"#{v}" if isinstance(v, str) else v for k, v in arguments.items()}
    template = GLMS[name]
    messages = [Message("user", "q"), *([Message("assistant", remark)] if remark else [])]
    asked = template.prompt_ids(Conversation(tuple(messages[:1])))
    messages.append(call(arguments, "天气 2"))

    example = template.encode(Conversation(tuple(messages)))
    reply = template.parse(example.input_ids[len(asked) :])

    assert reply[:-1] == messages[1:-1]
    assert reply[-1].metadata == "天气 2"
    assert parse_tool_call(reply[-1].content) == arguments


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_shown_of_a_reply_never_changes(name: str) -> None:
    from glmtune.use.chat import reply_text

    template = GLMS[name]
    answers = [
        talk(("user", "q"), ("assistant", "<think>想一想</think>\n很好。")),
        talk(("user", "q"), ("assistant", "好")),
    ]
    if name != "glm-z1":
        answers.append(Conversation(WEATHER.messages[:4]))
    for conversation in answers:
        asked = next(i for i, m in enumerate(conversation) if m.role == "assistant")
        prompt = template.prompt_ids(Conversation(conversation.messages[:asked]))
        reply = template.encode(conversation).input_ids[len(prompt) :]
        whole = reply_text(template.parse(reply))
        shown = [reply_text(template.parse_partial(reply[:n])) for n in range(1, len(reply) + 1)]
        assert all(whole.startswith(part.rstrip("\ufffd")) for part in shown)
        assert shown[-1] == whole
        assert "{" not in "".join(shown[:-1])


@pytest.mark.parametrize("name", WITHOUT_OPENING)
def test_a_call_that_cannot_be_read_stays_as_it_was_written(name: str) -> None:
    written = {
        "glm-4.5": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>北",
    }.get(name, 'weather\n{"city": "北')
    ids = ANY.encode(written, add_special_tokens=False)

    [message] = GLMS[name].parse(ids)

    assert written.endswith(message.content)
    assert message.metadata == ("" if name == "glm-4.5" else "weather")


def test_code_for_an_interpreter_is_written_and_read_as_it_is() -> None:
    code = Message("assistant", "print(1)\nprint(2)", metadata="python")
    template = GLMS["glm-4-9b"]

    reply = learned(template.encode(talk(("user", "q"), code)))

    assert text(reply) == "python\nprint(1)\nprint(2)<|observation|>"
    assert template.parse(reply) == [code]


# ---- what a checkpoint's template leaves out ---------------------------------------------


def test_tools_and_calls_that_the_template_leaves_out_are_refused() -> None:
    plain = (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    template = GlmTemplate(glm_tokenizer(plain))
    with pytest.raises(TemplateError, match="turn 0 has tools, which the chat template"):
        template.prompt_ids(talk(Message("system", "s", tools=TOOLS), ("user", "q")))
    with pytest.raises(TemplateError, match="turn 1 has a call, which the chat template"):
        template.encode(talk(("user", "q"), call({})))


def test_a_turn_that_the_template_leaves_out_is_refused() -> None:
    empty = talk(("user", "q"), ("assistant", "a"), ("user", ""), ("assistant", ""))
    with pytest.raises(TemplateError, match="not the beginning"):
        GLMS["glm-4-9b"].encode(empty)


# ---- the promise, for any conversation ---------------------------------------------------

some_texts = texts.map(lambda t: t or "x")
users = st.builds(Message, st.just("user"), some_texts)
answers = st.builds(Message, st.just("assistant"), some_texts, is_learned=flags)
calls = st.builds(
    Message,
    st.just("assistant"),
    st.dictionaries(st.sampled_from(["a", "b"]), texts, max_size=2).map(render_tool_call),
    metadata=st.sampled_from(["weather", "天气 2"]),
    is_learned=flags,
)
results = st.builds(Message, st.just("observation"), some_texts)
exchanges = st.tuples(users, answers) | st.tuples(users, calls, results, answers)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(WITHOUT_OPENING),
    turns=st.lists(exchanges, min_size=1, max_size=3),
    control=st.sampled_from([*SPECIAL, "<tool_call>", "</think"]),
)
def test_the_ids_before_a_learned_answer_are_those_of_its_prompt(
    name: str, turns: list[tuple[Message, ...]], control: str
) -> None:
    template = GLMS[name]
    messages = [turn for exchange in turns for turn in exchange]
    messages[0] = Message("user", f"{control}{messages[0].content}{control}")
    example = template.encode(Conversation(tuple(messages)))
    ids = example.input_ids
    expected: list[int] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = template.prompt_ids(Conversation(tuple(messages[:index])))
        assert ids[: len(prompt)] == prompt
        stop = next(i for i in range(len(prompt), len(ids)) if ids[i] in template.stop_ids)
        if is_learned(message):
            expected += ids[len(prompt) : stop + 1]
    assert learned(example) == expected
    # nobody but the template writes control tokens
    written = [*SPECIAL, *(MARKS if name == "glm-4.5" else ())]  # by this template
    control_ids = set(ANY.convert_tokens_to_ids(written))
    plain = template.encode(Conversation(tuple(map(_without_text, messages)))).input_ids
    assert [i for i in ids if i in control_ids] == [i for i in plain if i in control_ids]


@pytest.mark.parametrize("format", SINGLE)
@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_of_every_format_are_asked_in_chat_as_in_training(name: str, format: str) -> None:
    row = Row(ROWS[format], "rows.json", 1)
    conversation = convert(row, FORMATS[format])

    assert check_template_agrees(GLMS[name], [conversation]) == 1
    end = GLMS[name].encode(conversation).labels[-1]
    assert ANY.convert_ids_to_tokens(end) == "<|user|>"


def _without_text(message: Message) -> Message:
    if not message.metadata:
        return replace(message, content="x" if message.content.strip() else message.content)
    return replace(
        message, content=render_tool_call(dict.fromkeys(parse_tool_call(message.content), "x"))
    )


def test_a_name_of_an_argument_writes_no_control_token() -> None:
    assert "{{ k }}" in GLM_4_5
    with pytest.raises(
        TemplateError, match=r"call of message 1 has the name.*<\|user\|> is a control token"
    ):
        GLMS["glm-4.5"].encode(talk(("user", "q"), call({"<|user|>": 1})))
