"""Adapters that other releases and other tools have saved load as they are.

`old_adapters.json` holds the `adapter_config.json` that each release of peft writes for a LoRA of
r 4 and alpha 8 on query_key_value: `LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1,
target_modules=["query_key_value"], task_type="CAUSAL_LM")`, `get_peft_model`, `save_pretrained`,
run with that release. LLaMA-Factory, the official demo and ms-swift from 2 on save through peft.
That of ms-swift 1.7.3 is put together from its source.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from glmtune.errors import CheckpointError, RecipeError
from glmtune.methods import adapter_folder, lora
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.reading import build_recipe
from glmtune.template.select import template_for
from glmtune.train.run import fine_tune
from glmtune.use.export import merge
from glmtune.use.generate import Sampling
from glmtune.use.open import base_of, open_session

CONFIGS = json.loads((Path(__file__).parent / "old_adapters.json").read_text(encoding="utf-8"))
SAVES_BIN = ("peft 0.3.0", "peft 0.4.0", "peft 0.6.0", "ms-swift 1.7.3")
LAYER = "transformer.encoder.layers.{}.self_attention.query_key_value"
IDS = torch.arange(3, 15)[None]


def updates() -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of both layers of the tiny model."""
    generator = torch.Generator().manual_seed(1)
    return {
        LAYER.format(index): (
            torch.randn(4, 64, generator=generator),
            torch.randn(128, 4, generator=generator),
        )
        for index in (0, 1)
    }


def save_as(maker: str, folder: Path, **changes: Any) -> Path:
    """Write an adapter folder as a release of peft or ms-swift does."""
    pattern = "base_model.model.{}.lora_{}.weight"
    if maker.startswith("ms-swift"):
        folder, pattern = folder / "default", "{}.lora_{}.default.weight"
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for layer, (a, b) in updates().items():
        tensors |= {pattern.format(layer, "A"): a, pattern.format(layer, "B"): b}
    if maker in SAVES_BIN:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    config = CONFIGS[maker] | changes
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    scores: Tensor = model.eval()(IDS).logits
    return scores


@torch.no_grad()
def updated_logits(tiny_model_dir: Path) -> Tensor:
    """What the updates make of the base, by hand: W + alpha / r * B A."""
    model: Any = load_model(tiny_model_dir)
    for layer, (a, b) in updates().items():
        model.get_submodule(layer).weight.add_(8 / 4 * b @ a)
    return logits(model)


@pytest.mark.parametrize("maker", CONFIGS)
def test_an_adapter_of_any_age_does_what_its_tensors_say(
    maker: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = save_as(maker, tmp_path)

    model = lora.load(load_model(tiny_model_dir), folder)

    wanted = updated_logits(tiny_model_dir)
    assert (wanted - logits(load_model(tiny_model_dir))).abs().max() > 0.1
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(merge.merge(model)), wanted, atol=1e-4, rtol=1e-4)


def test_a_key_of_the_future_is_ignored_and_logged(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="glmtune")
    future: dict[str, Any] = {"use_warp": True, "warp_config": None}
    folder = save_as("peft 0.20.0", tmp_path, **future)

    model = lora.load(load_model(tiny_model_dir), folder)

    torch.testing.assert_close(logits(model), updated_logits(tiny_model_dir), atol=1e-4, rtol=1e-4)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("use_warp=True is ignored" in message for message in warned)
    assert not any("warp_config" in message for message in warned)
    assert "ignored keys that this peft lacks: warp_config" in caplog.text


def test_a_method_that_peft_does_not_have_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = save_as("peft 0.20.0", tmp_path, peft_type="WARP")

    with pytest.raises(CheckpointError, match="peft_type is 'WARP', which the installed peft"):
        lora.load(load_model(tiny_model_dir), folder)


def test_an_adapter_of_ms_swift_1_is_found_in_its_folder(tmp_path: Path) -> None:
    save_as("ms-swift 1.7.3", tmp_path)

    with pytest.raises(CheckpointError, match=r"There is one in .*default: give that"):
        adapter_folder.check_folder(tmp_path)


@pytest.mark.parametrize(
    "stored", ["/root/autodl-tmp/tiny", "D:\\models\\tiny", "../models/tiny/", "tiny"]
)
def test_a_base_that_has_moved_is_found_by_its_name(
    stored: str,
    taught_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = save_as("peft 0.8.2", tmp_path / "out" / "run", base_model_name_or_path=stored)
    moved = tmp_path / "tiny"
    if stored != "tiny":  # which the hub would be asked for
        with pytest.raises(
            CheckpointError, match=r"does not exist, and there is no tiny in .*elsewhere"
        ):
            base_of(folder)

    moved.symlink_to(taught_model_dir)
    session = open_session(str(folder), sampling=Sampling(max_new_tokens=2))

    assert base_of(folder) == str(moved)
    assert f"its base model {stored} is taken from {moved}" in caplog.text
    assert "".join(session.stream("你叫什么名字？")) is not None


def recipe_tree(tiny_model_dir: Path, tmp_path: Path, **section: Any) -> dict[str, Any]:
    rows = [{"instruction": f"{n} 加 {n}", "input": "", "output": f"{2 * n}"} for n in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return {
        "model": {"name_or_path": str(tiny_model_dir), "dtype": "float32"},
        "data": {"train": str(tmp_path / "rows.json"), "max_length": 90},
        "adapter": section,
        "training": {"max_steps": 1, "gradient_accumulation_steps": 2, "use_cpu": True},
        "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 2},
        "output": {"dir": str(tmp_path / "more"), "report_to": "none"},
    }


def test_training_continues_from_an_old_adapter(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    folder = save_as("peft 0.3.0", tmp_path / "old")
    tree = recipe_tree(
        tiny_model_dir, tmp_path, r=4, lora_alpha=8, name_or_path=str(folder), method="lora"
    )
    tree["training"]["learning_rate"] = 1e-4

    fine_tune(build_recipe(tree))

    after = adapter_folder.read_tensors(tmp_path / "more")[1]
    for layer, (a, b) in updates().items():
        moved = (
            after[f"base_model.model.{layer}.lora_A.weight"] - a,
            (after[f"base_model.model.{layer}.lora_B.weight"] - b),
        )
        for change in moved:  # one step of Adam is the learning rate, for each number
            assert 0 < change.abs().max() < 2e-4
    again = yaml.safe_load((tmp_path / "more" / "recipe.yaml").read_text(encoding="utf-8"))
    assert again["adapter"]["name_or_path"] == str(folder)


def test_continuing_with_other_settings_is_refused_with_those_to_set(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = save_as("peft 0.4.0", tmp_path)

    with pytest.raises(RecipeError, match=r"set adapter\.r=4 adapter\.lora_alpha=8\.$"):
        lora.attach(load_model(tiny_model_dir), LoraSection(name_or_path=str(folder)))
    targets = ("query_key_value", "dense")
    wider = LoraSection(r=4, lora_alpha=8, target_modules=targets, name_or_path=str(folder))
    with pytest.raises(CheckpointError, match="lacks 4 tensors"):
        lora.attach(load_model(tiny_model_dir), wider)


def test_an_adapter_of_a_wider_model_is_refused_with_both_shapes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = save_as("peft 0.10.0", tmp_path)
    tensors = {
        name: torch.zeros(4, 96) if "lora_A" in name else torch.zeros(192, 4)
        for name in adapter_folder.read_tensors(folder)[1]
    }
    save_file(tensors, folder / "adapter_model.safetensors")

    model = lora.attach(load_model(tiny_model_dir), LoraSection(r=4))
    with pytest.raises(CheckpointError, match=r"4 of another shape .*\(4, 96\) and not \(4, 64\)"):
        lora.restore(folder, model)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        lora.load(load_model(tiny_model_dir), folder)


def test_prompts_of_an_old_adapter_are_official_and_reported_as_unknown(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_as("peft 0.12.0", tmp_path)

    session = open_session(str(tiny_model_dir), folder)

    assert "has no glmtune.json, which records how prompts were built" in caplog.text
    assert session.template.fingerprint == template_for(load_tokenizer(tiny_model_dir)).fingerprint
