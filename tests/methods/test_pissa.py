"""PiSSA and OLoRA start from a part of the weights, and leave the weights unchanged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmtune.errors import CheckpointError
from glmtune.methods import method
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.select import template_for
from glmtune.use.export import merge

SECTIONS = {
    "pissa": LoraSection(init_lora_weights="pissa"),
    "olora": LoraSection(init_lora_weights="olora", rank_pattern={"layers.1.*": 2}),
    "pissa by iterations": LoraSection(init_lora_weights="pissa_niter_4", use_rslora=True),
}


@torch.no_grad()
def scores(model: Any) -> Tensor:
    result: Tensor = model.eval()(torch.arange(3, 22)[None]).logits
    return result.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", SECTIONS)
def test_an_adapter_that_begins_with_a_part_of_the_weights_leaves_them_as_they_are(
    tiny_model_dir: Path, name: str, dtype: torch.dtype
) -> None:
    plain = load_model(tiny_model_dir, dtype=dtype, attn_implementation="packed")
    original = {n: p.clone() for n, p in plain.named_parameters()}
    before = scores(plain)

    model = method.attach(plain, SECTIONS[name])

    adapted = dict(adapted_layers(model))
    assert len(adapted) == 2
    for name, layer in adapted.items():
        weight = original[f"{name}.weight"]
        bits = 0 if dtype == torch.bfloat16 else 1e-6  # OLoRA changes float32 in place
        torch.testing.assert_close(layer.get_base_layer().weight.data, weight, atol=bits, rtol=0)
        assert layer.lora_B["default"].weight.any()  # and it does begin with something
    tolerance = 0.2 if dtype == torch.bfloat16 else 1e-4  # the scores are up to 30
    torch.testing.assert_close(scores(model), before, atol=tolerance, rtol=0)
    counted, _ = method.count_parameters(model)
    merge.merge_in_place(model)  # nothing was learned
    assert method.count_parameters(model)[0] == counted > 0  # as the report tells it
    for name, layer in adapted.items():
        weight = layer.get_base_layer().weight.data
        torch.testing.assert_close(weight, original[f"{name}.weight"], atol=1e-6, rtol=1e-2)


def test_a_pissa_run_resumes_only_from_its_own_initialization(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = method.attach(load_model(tiny_model_dir), SECTIONS["pissa"])
    method.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))
    other: Any = load_model(tiny_model_dir)
    with torch.no_grad():
        other.transformer.encoder.layers[1].self_attention.query_key_value.weight.mul_(1.01)
    other = method.attach(other, SECTIONS["pissa"])

    with pytest.raises(CheckpointError, match=r"another part of the weights of .*layers\.1"):
        method.restore(tmp_path, other)
