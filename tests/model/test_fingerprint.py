"""The fingerprint of a base follows its numbers and its network, not its files."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.errors import CheckpointError
from glmtune.methods import lora, method
from glmtune.model.fingerprint import compare, fingerprint, fingerprint_of
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection, PtuningV2Section
from glmtune.template.select import template_for
from glmtune.use.open import load_tuned

LAYER = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"


def in_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_shards(folder: Path) -> None:
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 3


def in_dtype(dtype: torch.dtype) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        load_model(folder).to(dtype).save_pretrained(folder)

    return change


def with_key(key: str, value: float | str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.manual_seed(1)
    random = {name: torch.randn_like(tensor) for name, tensor in load_file(path).items()}
    save_file(random, path, {"format": "pt"})


def zero_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, LAYER: torch.zeros_like(tensors[LAYER])}, path, {"format": "pt"})


def swap_layers(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    other = LAYER.replace("layers.1", "layers.0")
    tensors[LAYER], tensors[other] = tensors[other], tensors[LAYER]
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model_dir, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = lora.attach(load_model(tiny_model_dir), LoraSection(r=2))
    method.save(model, folder, template_for(load_tokenizer(tiny_model_dir)))
    return folder


@pytest.mark.parametrize(
    "change", [in_bin, in_shards, with_key("use_cache", False), with_key("_name_or_path", "x/y")]
)
def test_a_copy_in_other_files_is_the_same_base(
    tiny_model_dir: Path, copy: Path, adapter: Path, change: Callable[[Path], None]
) -> None:
    change(copy)

    assert fingerprint_of(copy) == fingerprint_of(tiny_model_dir)
    load_tuned(str(copy), adapter)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_copy_in_another_dtype_is_used_with_a_warning(
    copy: Path, adapter: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    in_dtype(dtype)(copy)

    with caplog.at_level(logging.WARNING):
        load_tuned(str(copy), adapter)

    assert "is used in another dtype than in training: it was stored as F32, and" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weights, "5 of 5 layers have other weights: it is another model"),
        (with_key("rope_ratio", 8), "its config.json had rope_ratio 1, and now 8"),
        (with_key("layernorm_epsilon", 1e-6), "had layernorm_epsilon 1e-05, and now 1e-06"),
        (zero_a_tensor, r"layers.1 have other weights \(1 of 5 layers\): this copy was edited, or"),
        (swap_layers, r"layers.0, transformer.encoder.layers.1 have other weights \(2 of 5 lay"),
    ],
)
def test_another_base_is_refused_with_the_difference(
    copy: Path, adapter: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(copy)

    with pytest.raises(CheckpointError, match=rf"was trained over .*{message}.*delete \"base\""):
        load_tuned(str(copy), adapter)

    meant = tmp_path / "meant"
    shutil.copytree(adapter, meant)
    card = json.loads((meant / "glmtune.json").read_text())
    del card["base"]  # as the message says
    (meant / "glmtune.json").write_text(json.dumps(card))
    load_tuned(str(copy), meant)


def test_a_prefix_knows_its_base_too(tiny_model_dir: Path, copy: Path, tmp_path: Path) -> None:
    model = method.attach(load_model(tiny_model_dir), PtuningV2Section(pre_seq_len=3))
    method.save(model, tmp_path / "prefix", template_for(load_tokenizer(tiny_model_dir)))
    other_weights(copy)

    with pytest.raises(CheckpointError, match="it is another model"):
        load_tuned(str(copy), tmp_path / "prefix")


def test_another_family_has_a_fingerprint(tiny_llama_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama_dir, tmp_path / "copy")
    in_bin(tmp_path / "copy")
    found = fingerprint(tiny_llama_dir)

    assert "rms_norm_eps" in found.config
    assert len(found.weights) == 5
    assert compare(found, fingerprint(tmp_path / "copy")) is None


def test_the_fingerprint_of_a_large_model_reads_little_of_it(tmp_path: Path) -> None:
    shape, layers = (4096, 13696), 28
    nbytes = 2 * shape[0] * shape[1]
    header = {
        f"transformer.encoder.layers.{layer}.mlp.dense_4h_to_h.weight": {
            "dtype": "F16",
            "shape": shape,
            "data_offsets": [layer * nbytes, (layer + 1) * nbytes],
        }
        for layer in range(layers)
    }
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + layers * nbytes)  # a hole of 3 GB
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}')

    began = time.process_time()
    found = fingerprint(tmp_path)

    assert time.process_time() - began < 0.5
    assert len(found.weights) == layers


def test_a_base_that_was_cut_short_is_named_for_what_it_is(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model_dir, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])

    with pytest.raises(CheckpointError, match=r"ends before its last tensor.*copy it again"):
        fingerprint(folder)
