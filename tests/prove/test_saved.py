"""What is on disk is what is in memory, or the proof fails."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.data.batches import MicroBatch
from glmtune.errors import TrainingError
from glmtune.methods import lora, method
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model
from glmtune.prove.saved import check_saved
from glmtune.recipe.methods import FullSection, LoraSection
from glmtune.template.base import Template

PROBE = MicroBatch(torch.arange(3, 15)[None], torch.arange(3, 15)[None])


def tuned(tiny_model_dir: Path, dtype: torch.dtype = torch.float32, **keys: Any) -> Any:
    """A tiny model with an adapter that does something."""
    torch.manual_seed(0)
    model = lora.attach(load_model(tiny_model_dir, dtype=dtype), LoraSection(r=2, **keys))
    for _, layer in adapted_layers(model):
        layer.lora_B["default"].weight.data.normal_(0, 0.1)
    return model


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
    (tmp_path / "glmtune.json").unlink()  # or its checksums would tell
    save_file(tensors, tmp_path / "adapter_model.safetensors")

    with pytest.raises(TrainingError, match="logits of the saved adapter differ"):
        check_saved(model, tmp_path, PROBE)


def test_a_saved_model_that_differs_in_one_number_is_caught(
    tiny_model_dir: Path, tmp_path: Path, template: Template
) -> None:
    model = method.attach(load_model(tiny_model_dir), FullSection())
    method.save(model, tmp_path, template)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.encoder.final_layernorm.weight"][0] += 0.5
    (tmp_path / "glmtune.json").unlink()  # or its checksums would tell
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(TrainingError, match="logits of the saved model differ"):
        check_saved(model, tmp_path, PROBE)
