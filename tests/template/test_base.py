"""A conversation that is too long loses what precedes its last answer, oldest first."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.template.conversations import dialogues, learned, talk

from glmtune.conversation import Conversation, Message
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.base import IGNORE
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.tool_calls import render_tool_call


def test_the_oldest_exchanges_are_dropped_first(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    system, tail = ("system", "规则"), ("user", "还有一个问题")
    first = [("user", "一" * 20), ("assistant", "甲")]
    second = [("user", "二"), ("assistant", "乙"), ("observation", "o"), ("assistant", "丙")]
    third = [("user", "三"), ("assistant", "丁")]
    whole = talk(system, *first, *second, *third, tail)

    def length(*turns: Any) -> int:
        return len(template.encode(talk(*turns)).input_ids)

    for kept in (
        [system, *first, *second, *third, tail],
        [system, *first, *second, *third],
        [system, *second, *third],
        [system, *third],
    ):
        budget = length(*kept)
        assert template.shorten_prompt(whole, budget) == template.encode(talk(*kept))


def test_then_the_longest_text_of_the_last_exchange_is_cut(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    system, answer = ("system", "规则"), ("assistant", "丁是答案。")
    call = Message("assistant", render_tool_call({"q": "x"}), metadata="search")
    whole = talk(
        system, ("user", "问" * 5), ("assistant", "旧"), ("user", "问" * 9), call,
        ("observation", "看" * 300), answer,
    )  # fmt: skip
    budget = 120

    short = template.shorten_prompt(whole, budget)

    assert short is not None
    assert budget - 3 <= len(short.input_ids) <= budget  # 看 is three bytes
    text = tiny_tokenizer.decode(short.input_ids)
    kept = text.count("看")
    assert 0 < kept < 300
    assert short == template.encode(
        talk(system, ("user", "问" * 9), call, ("observation", "看" * kept), answer)
    )
    assert text.endswith("丁是答案。")
    assert learned(short)[-1] == 2


def test_every_text_is_cut_when_one_is_not_enough(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    call = Message("assistant", "x", metadata="t")
    whole = talk(("user", "问" * 50), call, ("observation", "看" * 40), ("assistant", "答"))
    least = template.encode(talk(("user", "问"), call, ("observation", "看"), ("assistant", "答")))

    assert template.shorten_prompt(whole, len(least.input_ids)) == least
    assert template.shorten_prompt(whole, len(least.input_ids) - 1) is None


def test_an_answer_that_does_not_fit_is_not_cut(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    assert template.shorten_prompt(talk(("user", "问"), ("assistant", "答" * 99)), 50) is None
    # nothing to learn, so nothing that must be kept
    assert template.shorten_prompt(talk(("user", "问" * 99)), 50) is None


@settings(max_examples=40, deadline=None)
@given(conversation=dialogues(), budget=st.integers(5, 120))
def test_shortened_conversations_fit_and_keep_the_last_answer(
    tiny_tokenizer: ChatGLMTokenizer, conversation: Conversation, budget: int
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    short = template.shorten_prompt(conversation, budget)
    if short is None:
        return
    assert len(short.input_ids) <= budget
    whole = learned(template.encode(conversation))
    left = learned(short)
    # the ends of two answers may differ if turns after the last one were dropped
    assert left
    assert left[:-1] == whole[len(whole) - len(left) :][:-1]
    assert short.labels[-1] in (IGNORE, 2)
