"""A checkpoint is read tensor by tensor, from any of its published kinds of files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glmtune.errors import CheckpointError
from glmtune.model.load import load_model
from glmtune.use.export.weights import Weights


def as_bin(source: Path, folder: Path, *, num_shards: int, is_old: bool = False) -> Path:
    """Write a checkpoint as `.bin` files, as they were published."""
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    state = list(load_model(source).state_dict().items())
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        name = f"pytorch_model-{number}.bin" if num_shards > 1 else "pytorch_model.bin"
        part = dict(state[number::num_shards])
        torch.save(part, folder / name, _use_new_zipfile_serialization=not is_old)
        weight_map |= dict.fromkeys(part, name)
    if num_shards > 1:
        index = json.dumps({"weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("num_shards", "is_old"), [(1, False), (3, False), (1, True)])
def test_every_kind_of_file_gives_the_tensors_of_the_model(
    num_shards: int, is_old: bool, odd_model_dir: Path, tmp_path: Path
) -> None:
    folder = as_bin(odd_model_dir, tmp_path / "bin", num_shards=num_shards, is_old=is_old)
    expected = load_model(odd_model_dir).state_dict()

    for weights in (Weights(odd_model_dir), Weights(folder)):
        assert set(weights.stored) == set(expected)
        for name, stored in weights.stored.items():
            assert torch.equal(weights.read(name), expected[name])
            assert (stored.shape, stored.dtype) == (expected[name].shape, expected[name].dtype)


def test_a_quantized_base_is_refused_with_the_way_out(odd_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nf4"
    shutil.copytree(odd_model_dir, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")

    with pytest.raises(CheckpointError, match=r"quantized \(bitsandbytes\).*--base FOLDER"):
        Weights(folder)


def test_a_missing_shard_is_named_before_anything_is_written(
    odd_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "incomplete"
    shutil.copytree(odd_model_dir, folder)
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()

    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        Weights(folder)


def test_a_number_that_is_not_finite_is_never_written_on(
    odd_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(odd_model_dir, folder)
    model = load_model(odd_model_dir)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    name = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"
    state[name][0, 0] = float("nan")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=rf"{name} holds 1 of .* not finite"):
        Weights(folder).read(name)
