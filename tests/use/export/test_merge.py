"""A merged model is a plain one that answers as the adapter over its base."""

from pathlib import Path

import torch

from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model
from glmtune.recipe.methods import LoraSection
from glmtune.use.export import merge

IDS = torch.arange(3, 15)[None]


def test_a_merged_model_gives_the_adapters_logits(tiny_model_dir: Path) -> None:
    torch.manual_seed(0)
    section = LoraSection(r=2, target_modules="all-linear")
    model = lora.attach(load_model(tiny_model_dir), section).eval()
    with torch.no_grad():
        plain = model(IDS).logits
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.normal_(0, 0.1)
        before = model(IDS).logits
        after = merge.merge(model)(IDS).logits

    assert (before - plain).abs().max() > 0.1  # or there would be nothing to merge
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
