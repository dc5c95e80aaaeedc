"""Noise on tokens: as large as the paper says for each row, only in training, and repeatable."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import glmtune.kernels.packed_attention  # noqa: F401
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.methods import method
from glmtune.model.load import load_model
from glmtune.recipe.methods import LoraSection, PrefixTuningSection
from glmtune.template.base import Example
from glmtune.train.neftune import add_noise

LENGTHS = (16, 4)
ALPHA = 5.0


def pack() -> MicroBatch:
    return pack_examples([Example([7] * n, [7] * n) for n in LENGTHS], range(2))


def vectors_seen(model: Any, batch: MicroBatch) -> Tensor:
    """What the first layer gets."""
    seen: list[Tensor] = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = base.get_decoder().layers if hasattr(base, "lm_head") else base.transformer.encoder
    first = (layers if isinstance(layers, torch.nn.ModuleList) else layers.layers)[0]
    handle = first.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(**batch.inputs(), use_cache=False)
    handle.remove()
    return seen[-1][0]


@pytest.fixture(params=["whole", "lora", "prefix_tuning"])
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> Any:
    model: Any = load_model(tiny_model_dir, attn_implementation="packed")
    if request.param == "lora":
        model = method.attach(model, LoraSection())
    elif request.param == "prefix_tuning":
        model = method.attach(model, PrefixTuningSection(num_virtual_tokens=3))
    add_noise(model, ALPHA)
    return model


def test_noise_is_uniform_and_scaled_by_the_length_of_its_row(model: Any) -> None:
    torch.manual_seed(0)
    plain = vectors_seen(model.eval(), pack())

    noise = vectors_seen(model.train(), pack()) - plain

    for part, length in zip(noise.split(LENGTHS), LENGTHS, strict=True):
        largest = ALPHA / math.sqrt(length * 64)
        assert part.abs().max() <= largest
        assert part.abs().max() > 0.98 * largest
        assert part.mean().abs() < 0.1 * largest
        assert part.std() == pytest.approx(largest / math.sqrt(3), rel=0.1)


def test_there_is_none_in_evaluation(model: Any) -> None:
    model.eval()

    assert torch.equal(vectors_seen(model, pack()), vectors_seen(model, pack()))


def test_it_is_drawn_from_the_generator_that_a_checkpoint_keeps(model: Any) -> None:
    model.train()
    torch.manual_seed(1)
    first = vectors_seen(model, pack())
    torch.manual_seed(1)

    assert torch.equal(vectors_seen(model, pack()), first)
    assert not torch.equal(vectors_seen(model, pack()), first)
