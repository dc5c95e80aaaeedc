"""The reference's tiny model and its vectors."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.model.chatglm.models import load
from torch import Tensor

from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration


@pytest.fixture(scope="module")
def vectors(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "tiny-model" / "golden.safetensors")


@pytest.fixture(scope="module")
def model(golden: Path) -> ChatGLMForConditionalGeneration:
    return load(golden)
