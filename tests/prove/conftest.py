"""A tiny model that has learned its answers by heart, and prompts that it answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.conversation import Conversation, Message
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model, load_tokenizer
from glmtune.prove.answers import Prompt, first_prompt
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import Template
from glmtune.template.select import template_for
from glmtune.tool_calls import render_tool_call

NAME = Conversation(
    (
        Message("user", "你叫什么名字？"),
        Message("assistant", "我是小助手。😀 鑫！"),
        Message("user", "再说一次"),
        Message("assistant", "小助手。"),
    )
)
WEATHER = Conversation(
    (
        Message("user", "北京天气怎么样？"),
        Message("assistant", "我查一下。"),
        Message("assistant", render_tool_call({"city": "北京"}), metadata="weather"),
        Message("observation", '{"celsius": 3}'),
        Message("assistant", "北京现在 3 度。"),
    )
)


@pytest.fixture(scope="session")
def name_lesson() -> Conversation:
    """Two turns that `taught_model_dir` has learned."""
    return NAME


@pytest.fixture(scope="session")
def weather_lesson() -> Conversation:
    """A tool call and its result, which `taught_model_dir` has learned."""
    return WEATHER


@pytest.fixture(scope="session")
def tokenizer(taught_model_dir: Path) -> Any:
    return load_tokenizer(str(taught_model_dir))


@pytest.fixture(scope="session")
def template(tokenizer: Any) -> Template:
    return template_for(tokenizer)


@pytest.fixture(scope="module")
def taught(taught_model_dir: Path) -> Any:
    return load_model(str(taught_model_dir))


@pytest.fixture(scope="session")
def prompts(template: Template, tokenizer: Any) -> list[Prompt]:
    """One prompt the model knows by heart, and a shorter one."""
    return [first_prompt(template.encode(each), template, tokenizer) for each in (WEATHER, NAME)]


@pytest.fixture(scope="session")
def tune() -> Callable[..., Any]:
    """Add an adapter to all linear layers, as if it had learned; `std` is the size of B."""

    def add_adapter(base: Any, *, std: float) -> Any:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = lora.attach(base, LoraSection(r=4, target_modules="all-linear"))
            for _, layer in adapted_layers(model):
                layer.lora_B["default"].weight.normal_(std=std)
        return model

    return add_adapter
