"""Prompts of chat that are not those of training, and packs that are not their rows, are caught."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.planted.templates import PACK_FAULTS, TEMPLATE_FAULTS
from tests.planted.test_runs import Recorder

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.conversation import Conversation, Message
from glmtune.data.batches import pack_examples
from glmtune.errors import TemplateError, TrainingError
from glmtune.model.load import load_model, load_tokenizer
from glmtune.prove.packed import check_packed
from glmtune.prove.prompts import check_template_agrees
from glmtune.template.chatglm import ChatGLMTemplate

LESSONS = [
    Conversation((Message("user", "你叫什么名字？"), Message("assistant", "我是小助手。"))),
    Conversation((Message("user", "北京天气怎么样？"), Message("assistant", "北京现在 3 度。"))),
    Conversation((Message("user", "写一首诗。"), Message("assistant", "春天来了。"))),
]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    return load_model(tiny_model_dir, dtype=torch.float32, attn_implementation="packed")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(str(tiny_model_dir))


@pytest.mark.parametrize("name", TEMPLATE_FAULTS)
def test_a_planted_fault_of_prompts_is_found_before_the_first_step(
    tokenizer: Any, name: str, record_property: Recorder
) -> None:
    with pytest.raises(TemplateError) as caught:
        check_template_agrees(TEMPLATE_FAULTS[name](tokenizer), LESSONS)

    record_property("said", str(caught.value))
    assert "chat" in str(caught.value)
    assert check_template_agrees(ChatGLMTemplate(tokenizer), LESSONS) == len(LESSONS)


@pytest.mark.parametrize("name", PACK_FAULTS)
def test_a_planted_fault_of_packs_is_found_before_the_first_step(
    model: Any, tokenizer: Any, name: str, record_property: Recorder
) -> None:
    examples = ChatGLMTemplate(tokenizer).encode_batch(LESSONS)
    part = pack_examples(examples, range(len(examples)))

    with pytest.raises(TrainingError) as caught:
        check_packed(model, PACK_FAULTS[name](part), examples)

    record_property("said", str(caught.value))
    assert "the model would learn what it is never asked" in str(caught.value)
    assert check_packed(model, part, examples).verdict == "passed"
