"""A model whose shapes hide no mistake, and adapters over it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.use.export.odd_model import ALL_LINEAR, MakeAdapter, MakeModel, odd_config

from glmtune.methods.adapter_folder import write_card
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_model
from glmtune.template.chatglm import ChatGLMTemplate


@pytest.fixture(scope="session")
def make_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: ChatGLMTokenizer
) -> MakeModel:
    """Make a checkpoint folder with its tokenizer: `make_model(dtype, **config)`."""

    def make(dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("odd-model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ChatGLMForConditionalGeneration(odd_config(**changes))
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # zero at first, which would hide a wrong order
                    parameter.data.normal_(0, 0.2)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def odd_model_dir(make_model: MakeModel) -> Path:
    """The odd model in float32, in several shards."""
    return make_model(shard="200KB")


@pytest.fixture(scope="session")
def make_adapter(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: ChatGLMTokenizer
) -> MakeAdapter:
    """Make an adapter of peft with random weights: `make_adapter(base, config)`."""
    from peft import get_peft_model

    def make(base: Path, config: Any, scale: float = 0.1, *, has_card: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        model = get_peft_model(load_model(base), config)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            biases = getattr(config, "bias", "none") != "none"
            for name, parameter in model.named_parameters():
                if parameter.requires_grad or (biases and name.endswith("bias")):
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
        model.save_pretrained(str(folder), save_embedding_layers=False)
        if has_card:
            write_card(folder, ChatGLMTemplate(tiny_tokenizer))
        return folder

    return make


@pytest.fixture(scope="session")
def odd_adapter_dir(odd_model_dir: Path, make_adapter: MakeAdapter) -> Path:
    """A LoRA of all linear layers of the odd model."""
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
    return make_adapter(odd_model_dir, config)
