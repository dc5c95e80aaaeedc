"""Chat templates of other families train as ChatGLM does, or are refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.template.conversations import flags, learned, talk, texts
from tests.template.fast_tokenizers import CHATML, CONTROL, LLAMA3, fast_tokenizer

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.errors import TemplateError
from glmtune.template.base import is_learned
from glmtune.template.chat_template import ChatTemplate
from glmtune.tool_calls import render_tool_call

TOKENIZER = fast_tokenizer(None, "<|im_end|>")  # all of them have the same vocabulary


@pytest.fixture(scope="module", params=["chatml", "llama3"])
def other(request: pytest.FixtureRequest) -> ChatTemplate:
    """The templates of two families."""
    if request.param == "chatml":
        return ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    return ChatTemplate(fast_tokenizer(LLAMA3, "<|end|>"))


def _text(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(ids)))


def test_other_families_learn_every_answer_and_its_end(other: ChatTemplate) -> None:
    end = other.stop_ids[0]
    first, second = [("user", "一"), ("assistant", "甲")], [("user", "二"), ("assistant", "乙")]
    example = other.encode(talk(("system", "s"), *first, *second))
    pieces = _text(learned(example)).split(_text([end]))
    assert [piece.strip() for piece in pieces] == ["甲", "乙", ""]
    assert learned(example).count(end) == 2


other_users = st.builds(Message, st.just("user"), texts)
other_answers = st.builds(Message, st.just("assistant"), texts, is_learned=flags)


@settings(max_examples=50, deadline=None)
@given(
    exchanges=st.lists(st.tuples(other_users, other_answers), min_size=1, max_size=3),
    control=st.sampled_from(CONTROL),
)
def test_the_promise_holds_for_other_families(
    other: ChatTemplate, exchanges: list[tuple[Message, Message]], control: str
) -> None:
    messages = [turn for exchange in exchanges for turn in exchange]
    messages[0] = Message("user", f"{control}{messages[0].content}{control}")
    example = other.encode(Conversation(tuple(messages)))
    ids = example.input_ids
    expected: list[int] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = other.prompt_ids(Conversation(tuple(messages[:index])))
        assert ids[: len(prompt)] == prompt
        stop = next(i for i in range(len(prompt), len(ids)) if ids[i] in other.stop_ids)
        if is_learned(message):
            expected += ids[len(prompt) : stop + 1]
    assert learned(example) == expected
    # nobody but the template writes control tokens
    plain = other.encode(
        talk(*((m.role, "x" if m.content.strip() else "") for m in messages))
    ).input_ids
    control_ids = set(TOKENIZER.convert_tokens_to_ids(list(CONTROL)))
    assert [i for i in ids if i in control_ids] == [i for i in plain if i in control_ids]


def test_replies_of_other_families_are_read(other: ChatTemplate) -> None:
    user, answer = Message("user", "hello"), Message("assistant", "你好")
    ids = other.encode(Conversation((user, answer))).input_ids
    reply = ids[len(other.prompt_ids(Conversation((user,)))) :]
    assert other.parse(reply) == [answer]


def test_tools_and_calls_reach_the_template_of_another_family() -> None:
    template = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    conversation = talk(
        Message("system", TOOLS_PROMPT, tools=[{"name": "weather"}]),
        ("user", "北京"),
        ("assistant", "我查"),
        Message("assistant", render_tool_call({"city": "北京"}), metadata="weather"),
        ("observation", "3"),
        ("assistant", "3 度"),
    )

    example = template.encode(conversation)

    text = _text(example.input_ids)
    assert 'tools: [{"type": "function", "function": {"name": "weather"}}]' in text
    assert TOOLS_PROMPT not in text  # ChatGLM's own words
    call = '我查<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call>'
    assert call in text
    assert "<|im_start|>tool\n3<|im_end|>" in text
    assert _text(learned(example)) == f"{call}<|im_end|>3 度<|im_end|>"


def test_a_call_that_json_cannot_represent_is_refused() -> None:
    template = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    code = Message("assistant", "```python\nprint(1)\n```", metadata="interpreter")
    with pytest.raises(TemplateError, match="turn 1 calls 'interpreter' in a way"):
        template.encode(talk(("user", "?"), code))


def test_the_date_in_a_prompt_is_fixed() -> None:
    template = ChatTemplate(fast_tokenizer(LLAMA3, "<|eot_id|>"))
    assert "Today Date: 26 Jul 2024" in _text(template.prompt_ids(talk(("user", "?"))))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    forgetful = CHATML.replace(
        "{{ message.content }}",
        "{{ message.content if loop.last or message.role != 'assistant'"
        " else message.content.split('</think>')[-1] }}",
    )
    template = ChatTemplate(fast_tokenizer(forgetful, "<|im_end|>"))
    one_answer = talk(("user", "?"), ("assistant", "<think>hm</think>ja"))
    assert "hm" in _text(learned(template.encode(one_answer)))

    with pytest.raises(TemplateError, match=r"turn 1.*rewrites earlier turns") as refusal:
        template.encode(talk(*one_answer, ("user", "!"), ("assistant", "o")))
    assert "hm" in str(refusal.value)


def test_a_template_whose_prompt_is_no_beginning_is_refused() -> None:
    unlike = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>model\n{% endif %}")
    with pytest.raises(TemplateError, match="not the beginning"):
        ChatTemplate(fast_tokenizer(unlike, "<|im_end|>"))


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(TemplateError, match="never learn to stop"):
        ChatTemplate(fast_tokenizer(endless, "<|im_end|>"))


def test_what_a_chat_template_does_not_accept_is_refused() -> None:
    picky = (
        CHATML
        + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    template = ChatTemplate(fast_tokenizer(picky, "<|im_end|>"))
    with pytest.raises(TemplateError, match="does not accept the conversation: no system"):
        template.encode(talk(("system", "s"), ("user", "?"), ("assistant", "!")))
    with pytest.raises(TemplateError, match="turn 0 is an answer"):
        template.encode(talk(("assistant", "!")))


def test_fingerprints_of_other_families_follow_their_templates() -> None:
    first = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    same = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    changed = ChatTemplate(fast_tokenizer(CHATML.replace("tools: ", "t: "), "<|im_end|>"))
    assert first.fingerprint == same.fingerprint != changed.fingerprint
    assert first.stop_ids == same.stop_ids


LOOP = "{% for i in range(99999) %}" * 3 + "{% set x = i %}" + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}", "does not accept the conversation: .*endfor"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content.no_such_method() }}", "does not accept the conversation"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('no system') }}", "does not accept the conversation: no system"),
        ("{% include 'x' %}", "does not accept the conversation"),
        (LOOP, "TimeoutError: it does not end within 0.2 seconds"),
        ("x" * 1_000_001, "has 1,000,001 characters, and no published one has 1,000,000"),
        ("", "has no chat template"),
    ],
    ids=lambda text: text[:30],
)
def test_a_chat_template_that_fails_or_does_not_end_is_refused_in_one_line(
    template: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if template == LOOP:  # a busy machine may need more for the others
        monkeypatch.setattr("glmtune.template.chat_template.SECONDS_TO_RENDER", 0.2)
    tokenizer = fast_tokenizer(template, "<|im_end|>")
    tokenizer.chat_template = template

    with pytest.raises(TemplateError, match=complaint) as caught:
        ChatTemplate(tokenizer)

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("tools", [3, "get_weather", ["get_weather"], [None]])
def test_tools_that_are_no_objects_are_refused(other: ChatTemplate, tools: object) -> None:
    messages = (Message("system", TOOLS_PROMPT, tools=tools), Message("user", "q"))

    with pytest.raises(TemplateError, match="turn 0 has tools that are not objects"):
        other.prompt_ids(Conversation(messages))


def test_tools_that_a_template_leaves_out_are_refused_in_training_and_in_chat() -> None:
    template = ChatTemplate(fast_tokenizer(LLAMA3, "<|eot_id|>"))
    tools = Message("system", TOOLS_PROMPT, tools=[{"name": "weather"}])
    call = Message("assistant", render_tool_call({"city": "北京"}), metadata="weather")

    with pytest.raises(TemplateError, match="turn 0 has tools, which this model's chat template"):
        template.encode(talk(tools, ("user", "?"), ("assistant", "o")))
    with pytest.raises(TemplateError, match="turn 0 has tools"):
        template.prompt_ids(talk(tools, ("user", "?")))
    with pytest.raises(TemplateError, match="turn 1 has a call"):
        template.encode(talk(("user", "?"), call))
    none = Message("system", "s", tools=[])
    assert template.encode(talk(none, ("user", "?"), ("assistant", "o")))
