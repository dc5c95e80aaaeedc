"""Chat builds the prompts that training saw; a template that contradicts itself is found."""

import re
from typing import Any

import pytest

from glmtune.conversation import Conversation
from glmtune.errors import TemplateError
from glmtune.prove.prompts import check_template_agrees
from glmtune.recipe.choices import LAYOUTS
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.select import template_for


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_prompts_in_chat_as_in_training(
    tokenizer: Any, layout: Any, name_lesson: Conversation, weather_lesson: Conversation
) -> None:
    one_turn = Conversation(name_lesson.messages[:2])
    taken = {"plain": [one_turn], "chatglm2": [one_turn, name_lesson]}  # the others support tools
    conversations = taken.get(layout, [one_turn, name_lesson, weather_lesson])

    num_answers = check_template_agrees(template_for(tokenizer, layout), conversations)

    assert num_answers == {"plain": 1, "tutorial": 3, "chatglm2": 2, "official": 6}[layout]


class _ForgetsTheRole(ChatGLMTemplate):
    """Chat that asks without `<|assistant|>`: the fault of many a fine-tuning script."""

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        return super().prompt_ids(conversation)[:-1]


class _AsksOtherwise(ChatGLMTemplate):
    def prompt_ids(self, conversation: Conversation) -> list[int]:
        ids = super().prompt_ids(conversation)
        return [*ids[:-1], 5, ids[-1]]


def test_a_template_that_leaves_the_role_out_of_the_prompt_is_found(
    tokenizer: Any, name_lesson: Conversation
) -> None:
    start = len(ChatGLMTemplate(tokenizer).prompt_ids(Conversation(name_lesson.messages[:1])))
    message = f"conversation 1: training begins to learn at token {start}, but chat would begin"

    with pytest.raises(TemplateError, match=re.escape(message)):
        check_template_agrees(_ForgetsTheRole(tokenizer), [name_lesson])


def test_a_template_with_another_token_in_the_prompt_is_found(
    tokenizer: Any, name_lesson: Conversation
) -> None:
    conversations = [Conversation(name_lesson.messages[:1]), name_lesson]

    with pytest.raises(TemplateError, match=r"conversation 2, turn 1: at token \d+ chat has \[5,"):
        check_template_agrees(_AsksOtherwise(tokenizer), conversations)
