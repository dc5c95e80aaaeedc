"""A digest changes with whatever decides answers, and with nothing else."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.methods import digest, method
from glmtune.methods.full import FULL_MODEL
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import (
    AdapterSection,
    FreezeSection,
    LoraSection,
    PromptTuningSection,
    PtuningV2Section,
)
from glmtune.template.select import template_for

SECTIONS: list[AdapterSection] = [
    LoraSection(r=2),
    PromptTuningSection(num_virtual_tokens=3),
    PtuningV2Section(pre_seq_len=3),
]


def save(base: Path, folder: Path, section: AdapterSection) -> Any:
    """Save new weights of a method, and give the model that has them."""
    model = method.attach(load_model(base), section)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.no_grad():
        trained[-1].add_(0.01)
    method.save(model, folder, template_for(load_tokenizer(base)))
    return model


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.method)
def test_the_digest_of_every_method_depends_on_its_weights_and_configuration(
    tiny_model_dir: Path, tmp_path: Path, section: AdapterSection
) -> None:
    folder = tmp_path / "adapter"
    model = save(tiny_model_dir, folder, section)
    first = method.digest(folder)

    copytree(folder, tmp_path / "copy")
    assert method.digest(tmp_path / "copy") == first
    (folder / "README.md").write_text("about it")
    assert method.digest(folder) == first

    with torch.no_grad():
        next(weight for weight in model.parameters() if weight.requires_grad).add_(0.1)
    method.save(model, folder, template_for(load_tokenizer(tiny_model_dir)))
    second = method.digest(folder)
    assert second != first

    peft, ours = folder / "adapter_config.json", folder / "config.json"
    file = peft if peft.is_file() else ours
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 99}))
    assert method.digest(folder) not in (first, second)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_model_whose_last_layer_was_trained_has_another_digest(
    tiny_model_dir: Path, tmp_path: Path, suffix: str
) -> None:
    folder = copytree(tiny_model_dir, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if suffix == "bin":
        file.unlink()
        file = folder / "pytorch_model.bin"
        torch.save(tensors, file)
    first = FULL_MODEL.digest(folder)
    assert FULL_MODEL.digest(folder) == first

    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    tensors[name] = tensors[name] + 1e-3
    if suffix == "bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, metadata={"format": "pt"})

    assert FULL_MODEL.digest(folder) != first


def test_a_tuned_model_is_distinguished_from_its_base_by_samples(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only samples are read: the digest of a file does not change with a number between them."""
    save(tiny_model_dir, tmp_path / "tuned", FreezeSection(trainable_layers=1))
    assert FULL_MODEL.digest(tmp_path / "tuned") != FULL_MODEL.digest(tiny_model_dir)
    monkeypatch.setattr(digest, "SAMPLE_BYTES", 4)
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(100)}, file)
    first = digest.of_large_files([file])

    for index, is_sampled in ((0, True), (49, True), (70, False), (99, True)):
        values = torch.zeros(100)
        values[index] = 1
        save_file({"weight": values}, file)
        assert (digest.of_large_files([file]) != first) == is_sampled, index


def test_a_damaged_file_has_a_digest_and_loading_reports_it(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"\xff" * 100, b"\x02" + b"\x00" * 7 + b"[]")):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(content)

        assert digest.of_large_files([file])
