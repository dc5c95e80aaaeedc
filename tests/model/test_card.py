"""glmtune.json knows the files that it was written with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import CheckpointError
from glmtune.methods import lora, method
from glmtune.model import card
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import FullSection, LoraSection
from glmtune.template.select import template_for


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter in `lora` and a tuned model in `full`."""
    folder = tmp_path_factory.mktemp("tuned")
    tokenizer = load_tokenizer(tiny_model_dir)
    template = template_for(tokenizer)
    adapted = lora.attach(load_model(tiny_model_dir), LoraSection(r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    method.save(adapted, folder / "lora", template)
    tuned = method.attach(load_model(tiny_model_dir), FullSection())
    method.save(tuned, folder / "full", template)
    for each in ("lora", "full"):
        tokenizer.save_pretrained(folder / each)
        card.seal(folder / each)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "tuned")
    return tmp_path / "tuned"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    tensors = load_file(path)
    first, second, *_ = [name for name in sorted(tensors) if "lora_B" in name]
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, path)


def zero(path: Path) -> None:
    save_file({name: 0 * tensor for name, tensor in load_file(path).items()}, path)


def edit_alpha(path: Path) -> None:
    config = path.with_name("adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1}))


@pytest.mark.parametrize("damage", [flip, swap, zero, edit_alpha])
def test_an_adapter_that_was_edited_is_refused_until_its_entry_is_deleted(
    tiny_model_dir: Path, folder: Path, damage: Callable[[Path], None]
) -> None:
    adapter = folder / "lora"
    damage(adapter / "adapter_model.safetensors")

    with pytest.raises(CheckpointError, match=r"is not what was written.* delete its line under"):
        method.load(load_model(tiny_model_dir), adapter)

    content = json.loads((adapter / "glmtune.json").read_text())
    name = "adapter_config.json" if damage is edit_alpha else "adapter_model.safetensors"
    del content["files"][name]  # as the message says
    (adapter / "glmtune.json").write_text(json.dumps(content))
    method.load(load_model(tiny_model_dir), adapter)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_tuned_model_that_was_edited_is_refused(folder: Path, name: str) -> None:
    path = folder / "full" / name
    if name == "config.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_ratio": 2}))
    else:
        flip(path)

    with pytest.raises(CheckpointError, match=rf"full: {name} is not what was written"):
        load_model(folder / "full")


def test_of_large_weights_samples_are_compared_and_everything_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "SMALL_BYTES", 1000)
    model = folder / "full"
    card.seal(model)
    assert len(json.loads((model / "glmtune.json").read_text())["weights"]) == 5
    load_model(model)

    path = model / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    tensors[name].view(-1)[1500] += 0.5  # not among the first, middle and last 1,024 of 6,144
    save_file(tensors, path, {"format": "pt"})
    load_model(model)
    with pytest.raises(CheckpointError, match=r"model.safetensors is not what was written"):
        card.verify(model, whole=True)

    tensors[name].view(-1)[0] += 0.5
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights of transformer.encoder.layers.1 is not"):
        load_model(model)


def test_files_that_people_edit_have_no_checksum(folder: Path) -> None:
    adapter = folder / "lora"
    (adapter / "README.md").write_text("mine")
    (adapter / "rows.json").write_text("[]")
    card.seal(adapter)

    assert sorted(json.loads((adapter / "glmtune.json").read_text())["files"]) == [
        *("adapter_config.json", "adapter_model.safetensors"),
        *("tokenizer.model", "tokenizer_config.json"),
    ]


@pytest.mark.parametrize("key", ["files", "base", "weights"])
def test_a_card_of_an_earlier_release_is_enough(
    tiny_model_dir: Path, folder: Path, key: str
) -> None:
    path = folder / "lora" / "glmtune.json"
    content = json.loads(path.read_text())
    content.pop(key, None)
    path.write_text(json.dumps(content))

    method.load(load_model(tiny_model_dir), folder / "lora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": 5}, "template is 5, expected a valid dictionary"),
        ({"template_fingerprint": None}, "template_fingerprint is None, expected a valid string"),
        ({"files": ["a"]}, r"files is \['a'\], expected a valid dictionary"),
        ({"files": {"a": "b"}}, "files.a is 'b', expected"),
        ({"files": {"../a": "0" * 64}}, r"a key of files is '\.\./a', expected"),
        ({"base": []}, r"base is \[\], expected"),
        ({"base": {"config": 5}}, "base.config is 5, expected a valid dictionary"),
        ({"base": {"weights": {"a": 5}}}, "base.weights.a is 5, expected a valid string"),
    ],
)
def test_a_card_of_other_types_is_refused_by_its_key(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    path = folder / "lora" / "glmtune.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    with pytest.raises(CheckpointError, match=message):
        method.check_folder(folder / "lora")


def test_info_compares_every_file_on_request(folder: Path, tiny_model_dir: Path) -> None:
    def run(path: Path) -> Any:
        return CliRunner().invoke(app, ["info", str(path), "--verify"])

    assert (
        "4 files are what was written or downloaded, to the last byte"
        in run(folder / "lora").output
    )
    flip(folder / "lora" / "tokenizer_config.json")
    assert "tokenizer_config.json is not what was written" in str(run(folder / "lora").exception)
    assert "there is nothing to compare" in str(run(tiny_model_dir).exception)


@pytest.mark.parametrize("name", ["model.gguf", "lora.gguf", "Modelfile"])
def test_what_an_export_writes_for_llama_cpp_and_ollama_has_a_checksum(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"as it was written")
    card.write_card(tmp_path, {}, "0" * 64)
    assert card.verify(tmp_path, whole=True) == 1

    (tmp_path / name).write_bytes(b"as it was wrItten")
    with pytest.raises(CheckpointError, match=f"{name} is not what was written"):
        card.verify(tmp_path, whole=True)
