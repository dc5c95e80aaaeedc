"""An adapter goes where it should, in float32, and only a complete one is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.errors import CheckpointError, RecipeError
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import Template
from glmtune.template.select import template_for


@pytest.fixture
def template(tiny_model_dir: Path) -> Template:
    return template_for(load_tokenizer(tiny_model_dir))


def tuned(tiny_model_dir: Path, dtype: torch.dtype = torch.float32, **keys: Any) -> Any:
    """A tiny model with an adapter that does something."""
    torch.manual_seed(0)
    model = lora.attach(load_model(tiny_model_dir, dtype=dtype), LoraSection(r=2, **keys))
    for _, layer in adapted_layers(model):
        layer.lora_B["default"].weight.data.normal_(0, 0.1)
    return model


def test_peft_knows_which_layers_of_chatglm_to_adapt(tiny_model_dir: Path) -> None:
    names = {name.rpartition(".")[2] for name, _ in adapted_layers(tuned(tiny_model_dir))}
    assert names == {"query_key_value"}


def test_all_linear_leaves_the_output_layer_alone(tiny_model_dir: Path) -> None:
    model = tuned(tiny_model_dir, target_modules="all-linear")
    names = {name.rpartition(".")[2] for name, _ in adapted_layers(model)}
    assert names == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_a_layer_that_the_model_lacks_is_refused_by_name(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"names q_proj, which .* are dense, .*query_key_value"):
        tuned(tiny_model_dir, target_modules=("q_proj", "query_key_value"))


def test_an_adapter_that_lacks_a_layer_or_has_one_too_many_does_not_load(
    tiny_model_dir: Path, tmp_path: Path, template: Template
) -> None:
    lora.save(tuned(tiny_model_dir), tmp_path, template)
    (tmp_path / "glmtune.json").unlink()  # as if it came from another tool
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    names = sorted(whole)

    save_file({name: whole[name] for name in names[1:]}, file)
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        lora.load(load_model(tiny_model_dir), tmp_path)

    save_file({**whole, names[0].replace("layers.0", "layers.9"): whole[names[0]].clone()}, file)
    with pytest.raises(CheckpointError, match="has 1 without a place here"):
        lora.load(load_model(tiny_model_dir), tmp_path)


def test_the_adapter_is_float32_over_a_half_precision_base(tiny_model_dir: Path) -> None:
    base = load_model(tiny_model_dir, dtype=torch.bfloat16)
    model = lora.attach(base, LoraSection(r=2))

    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert base.get_parameter("transformer.output_layer.weight").dtype == torch.bfloat16
