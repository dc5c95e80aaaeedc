"""adapter_config.json is typed, bounded, and fits the tensors beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from glmtune.errors import CheckpointError
from glmtune.inspect.adapter import describe_adapter
from glmtune.methods import lora, method
from glmtune.methods.adapter_config import with_declared_types
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection, PtuningV2Section
from glmtune.template.select import template_for


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An adapter of rank 2, without the checksums that would notice every edit."""
    template = template_for(load_tokenizer(tiny_model_dir))
    lora.save(lora.attach(load_model(tiny_model_dir), LoraSection(r=2)), tmp_path, template)
    (tmp_path / "glmtune.json").unlink()
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": "32"}, "lora_alpha is '32', expected a valid number"),
        ({"lora_alpha": True}, "lora_alpha is True, expected a valid number"),
        ({"lora_alpha": [1]}, r"lora_alpha is \[1\], expected a valid number"),
        ({"r": 10**9}, "r is 1000000000, expected a number less than or equal to 65536"),
        ({"r": -4}, "r is -4, expected a number greater than or equal to 0"),
        ({"r": 2.0}, "r is 2.0, expected a valid integer"),
        ({"r": 0}, "r is 0, expected 1 to 65,536"),
        ({"r": 4}, r"r is 4, but .*lora_A.* has the shape \(2, 64\)"),
        ({"r": None}, r"r is None, but .*lora_A.* has the shape \(2, 64\)"),
        ({"target_modules": "("}, r"target_modules is '\(', expected a regular expression"),
        ({"target_modules": {"a": 1}}, r"target_modules is \{'a': 1\}, expected a valid"),
        ({"target_modules": [7]}, "target_modules.0 is 7, expected a valid string"),
        ({"rank_pattern": {"x": "2"}}, "rank_pattern.x is '2', expected a valid integer"),
        ({"rank_pattern": {"[": 2}}, r"key of rank_pattern is '\[', expected a regular expression"),
        ({"rank_pattern": {"dense": 60_000}}, "rank_pattern is .*different adapters"),
        ({"layers_to_transform": "all"}, "layers_to_transform is 'all', expected a valid integer"),
        ({"megatron_config": {"a": 1}}, "megatron_config is .*, expected None"),
        ({"peft_type": 5}, "peft_type is 5, expected a valid string"),
        ({"peft_type": "NEWER"}, "peft_type is 'NEWER', which the installed peft"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path is .*valid string"),
        ({"bias": "some"}, "adapter"),
        ({"use_dora": "yes"}, "use_dora is 'yes', expected a valid boolean"),
        ({"alora_invocation_tokens": [5]}, r"is \[5\], expected null, since glmtune does not"),
        ({"alora_invocation_tokens": "x"}, "alora_invocation_tokens is 'x', expected null"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config is .*, expected null, since glmtune"),
        ({"lora_bias": "none"}, "lora_bias is 'none', expected a valid boolean"),
        ({"qalora_group_size": "16"}, "qalora_group_size is '16', expected a valid number"),
        ({"target_parameters": [7]}, "target_parameters.0 is 7, expected a valid string"),
        ({"layer_replication": [[0, "2"]]}, "layer_replication.0.1 is '2', expected a valid int"),
        ({"kasa_config": {"beta": "x"}}, "kasa_config.beta is 'x', expected a valid number"),
    ],
)
def test_a_value_that_peft_would_take_is_refused_by_its_key(
    tiny_model_dir: Path, folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "adapter_config.json", **changes)

    with pytest.raises(CheckpointError, match=message):
        method.load(load_model(tiny_model_dir), folder)


def test_keys_that_are_not_set_do_not_matter(tiny_model_dir: Path, folder: Path) -> None:
    """null or nothing, as other releases and tools write them."""
    unset = dict.fromkeys(("loftq_config", "lora_bias", "qalora_group_size", "layer_replication"))
    edit(folder / "adapter_config.json", **unset, alora_invocation_tokens=[], revision=None)

    loaded = method.load(load_model(tiny_model_dir), folder)

    assert loaded.peft_config["default"].qalora_group_size == 16


def test_what_peft_itself_writes_has_the_types_that_it_declares(tmp_path: Path) -> None:
    written = 0
    for kind in set(PEFT_TYPE_TO_CONFIG_MAPPING.values()):
        try:
            config = kind()
        except (TypeError, ValueError, ImportError):  # no default, or another library
            continue
        config.save_pretrained(str(tmp_path))
        stored = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
        known = {key: stored[key] for key in stored.keys() & vars(config).keys()}
        assert known.keys() >= with_declared_types(tmp_path, kind, known).keys()
        written += 1
    assert written > 20


@pytest.mark.parametrize("content", ["[]", "7", "null", '"x"', "", "{", '{"a":' * 9000])
@pytest.mark.parametrize("name", ["adapter_config.json", "glmtune.json"])
def test_json_of_another_type_is_refused_by_its_file(
    tiny_model_dir: Path, folder: Path, name: str, content: str
) -> None:
    (folder / name).write_text(content)

    for use in (describe_adapter, lambda path: method.load(load_model(tiny_model_dir), path)):
        with pytest.raises(CheckpointError, match=rf"{name}: expected a JSON object, "):
            use(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_by_its_tensor(
    tiny_model_dir: Path, folder: Path, value: float
) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = max(tensors)
    tensors[name][-1, -1] = value
    save_file(tensors, file)

    with pytest.raises(CheckpointError, match=rf"{name} holds 1 of .* not finite"):
        method.load(load_model(tiny_model_dir), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_seq_len": 9}, "pre_seq_len is 9, but pytorch_model.bin holds a prefix of 3 vectors"),
        ({"pre_seq_len": "3"}, "pre_seq_len is '3', but"),
        ({"pre_seq_len": 1e30}, "pre_seq_len is 1e.30, expected 0 to"),
        (
            {"prefix_projection": True},
            "prefix_projection is True, but pytorch_model.bin has no MLP",
        ),
    ],
)
def test_a_prefix_that_is_not_what_its_configuration_says_is_refused(
    tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = method.attach(load_model(tiny_model_dir), PtuningV2Section(pre_seq_len=3))
    method.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))
    edit(tmp_path / "config.json", **changes)

    with pytest.raises(CheckpointError, match=message):
        method.load(load_model(tiny_model_dir), tmp_path)


def test_a_prefix_with_a_number_that_is_not_finite_is_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = method.attach(load_model(tiny_model_dir), PtuningV2Section(pre_seq_len=3))
    method.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    tensors["transformer.prefix_encoder.embedding.weight"][0, 0] = float("nan")
    torch.save(tensors, tmp_path / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"embedding.weight holds 1 of .* not finite"):
        method.load(load_model(tiny_model_dir), tmp_path)
