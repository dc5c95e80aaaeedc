from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.data.batches import MicroBatch
from glmtune.errors import CheckpointError, RecipeError, TemplateError, TrainingError
from glmtune.methods import adapter_folder, lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model, load_tokenizer
from glmtune.prove.saved import check_saved
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import Template
from glmtune.template.select import template_for
from glmtune.use.export import merge


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


PROBE = MicroBatch(torch.arange(3, 15)[None], torch.arange(3, 15)[None])


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_is_proved_equal_to_the_trained_one(
    tiny_model_dir: Path, tmp_path: Path, template: Template, dtype: torch.dtype
) -> None:
    model = tuned(tiny_model_dir, dtype)
    lora.save(model, tmp_path, template)

    assert check_saved(model, tmp_path, PROBE) == 0.0
    assert list(model.peft_config) == ["default"]


def test_a_saved_adapter_that_differs_in_one_number_is_caught(
    tiny_model_dir: Path, tmp_path: Path, template: Template
) -> None:
    model = tuned(tiny_model_dir)
    lora.save(model, tmp_path, template)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    next(v for k, v in tensors.items() if "lora_B" in k)[0, 0] += 0.5
    save_file(tensors, tmp_path / "adapter_model.safetensors")

    with pytest.raises(TrainingError, match="logits of the saved adapter differ"):
        check_saved(model, tmp_path, PROBE)


def test_an_adapter_that_lacks_a_layer_or_has_one_too_many_does_not_load(
    tiny_model_dir: Path, tmp_path: Path, template: Template
) -> None:
    lora.save(tuned(tiny_model_dir), tmp_path, template)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    names = sorted(whole)

    save_file({name: whole[name] for name in names[1:]}, file)
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        lora.load(load_model(tiny_model_dir), tmp_path)

    save_file({**whole, names[0].replace("layers.0", "layers.9"): whole[names[0]].clone()}, file)
    with pytest.raises(CheckpointError, match="has 1 without a place here"):
        lora.load(load_model(tiny_model_dir), tmp_path)


def test_a_half_written_adapter_is_refused(
    tiny_model_dir: Path, tmp_path: Path, template: Template
) -> None:
    lora.save(tuned(tiny_model_dir), tmp_path, template)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="damaged or half written"):
        lora.load(load_model(tiny_model_dir), tmp_path)


def test_what_is_no_adapter_is_refused_with_what_it_is(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no such adapter folder"):
        adapter_folder.check_folder(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds a complete model"):
        adapter_folder.check_folder(tiny_model_dir)
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match=r"did not finish; try .*checkpoint-7"):
        adapter_folder.check_folder(tmp_path)


def test_an_adapter_is_refused_with_prompts_it_was_not_trained_on(
    tiny_model_dir: Path, tmp_path: Path, template: Template
) -> None:
    lora.save(tuned(tiny_model_dir), tmp_path, template)
    other = template_for(load_tokenizer(tiny_model_dir), "tutorial")

    adapter_folder.check_template(tmp_path, template)
    with pytest.raises(TemplateError, match=r"layout official.*layout tutorial"):
        adapter_folder.check_template(tmp_path, other)


def test_a_merged_model_gives_the_adapters_logits(tiny_model_dir: Path) -> None:
    model = tuned(tiny_model_dir, target_modules="all-linear").eval()
    with torch.no_grad():
        before = model(PROBE.input_ids).logits
        after = merge.merge(model)(PROBE.input_ids).logits

    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_the_adapter_is_float32_over_a_half_precision_base(tiny_model_dir: Path) -> None:
    base = load_model(tiny_model_dir, dtype=torch.bfloat16)
    model = lora.attach(base, LoraSection(r=2))

    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert base.get_parameter("transformer.output_layer.weight").dtype == torch.bfloat16
