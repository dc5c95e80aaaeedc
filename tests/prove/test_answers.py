"""Prompts are cut from rows as chat makes them, and answered as chat answers."""

from collections.abc import Sequence
from typing import Any

from glmtune.conversation import Conversation
from glmtune.prove.answers import Prompt, answer_all, answer_limit
from glmtune.prove.stops import StopRate, count_ended
from glmtune.template.base import IGNORE, Template
from glmtune.tool_calls import render_tool_call


def test_a_row_cut_before_its_first_learned_token_is_the_prompt_that_chat_makes(
    template: Template, prompts: Sequence[Prompt], name_lesson: Conversation
) -> None:
    asked = prompts[1]

    assert list(asked.ids) == template.prompt_ids(Conversation(name_lesson.messages[:1]))
    assert asked.text.endswith("<|user|> \n 你叫什么名字？<|assistant|>")
    assert asked.expected == "我是小助手。😀 鑫！"


def test_a_model_that_learned_its_answers_ends_them_in_a_batch_padded_on_the_left(
    taught: Any, template: Template, prompts: Sequence[Prompt]
) -> None:
    assert len(prompts[0].ids) != len(prompts[1].ids)  # or nothing would be padded

    answers = answer_all(taught, template, prompts, max_new_tokens=60)

    assert [answer.text for answer in answers] == [
        "我查一下。\nweather\n" + render_tool_call({"city": "北京"}),
        "我是小助手。😀 鑫！",
    ]
    assert count_ended(answers, max_new_tokens=60) == StopRate(2, (), 60)


def test_sampling_settings_of_the_model_do_not_touch_the_proof(
    taught: Any, template: Template, prompts: Sequence[Prompt]
) -> None:
    before = taught.generation_config.to_dict()
    try:
        taught.generation_config.update(do_sample=True, temperature=50.0, eos_token_id=[5])

        [answer] = answer_all(taught, template, prompts[1:], max_new_tokens=60)
    finally:
        taught.generation_config.update(**before)

    assert answer.text == prompts[1].expected


def test_an_answer_is_given_twice_the_time_of_those_in_the_data(
    prompts: Sequence[Prompt], template: Template, name_lesson: Conversation
) -> None:
    lengths = [prompt.num_expected for prompt in prompts]
    answer = template.encode(Conversation(name_lesson.messages[:2]))
    assert lengths[1] == sum(label != IGNORE for label in answer.labels)

    assert answer_limit(prompts, 128) == 2 * max(lengths) + 16
    assert answer_limit(prompts, 20) == 20
    assert answer_limit([*prompts, Prompt((1,), "")], 128) == 128  # nobody knows its answer
