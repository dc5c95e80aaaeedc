"""Weights of the base that are trained beside an adapter learn in float32, whatever its dtype."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glmtune import machine
from glmtune.errors import RecipeError
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.model.load import load_model
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune

ROWS = [
    {"instruction": f"{number} 加一等于几", "input": "", "output": f"等于 {number + 1}。"}
    for number in range(12)
]
NAME = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")


def recipe_for(model: Path, output: Path, *overrides: str, **adapter: Any) -> Recipe:
    tree = {
        "model": {"name_or_path": str(model), "dtype": "bfloat16"},
        "data": {"train": str(output.parent / "rows.json")},
        "adapter": {"r": 4, **adapter},
        "training": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-5,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "use_cpu": True,
        },
        "lint": {"before_training": False},
        "checks": {
            "stock_reader": False,
            "stop_prompts": 0,
            "max_new_tokens": 4,
            "forgetting": None,
        },
        "output": {"dir": str(output), "report_to": "none"},
    }
    return build_recipe(tree, overrides)


@pytest.fixture(params=["native", "widened"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bfloat16, and one that does not."""
    more = {torch.bfloat16} if request.param == "native" else set()
    monkeypatch.setattr(machine, "fast_cpu_dtypes", lambda: {torch.float32, *more})


BESIDE = {"modules_to_save": ["output_layer"], "bias": "lora_only"}


@pytest.mark.usefixtures("arithmetic")
def test_all_numbers_of_a_module_that_is_saved_in_full_move_and_its_proofs_pass(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    result = fine_tune(recipe_for(tiny_model_dir, tmp_path / "out", **BESIDE))

    assert not [proof for proof in result.proofs if proof.verdict == "failed"], result.proofs
    saved = load_file(tmp_path / "out" / NAME)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    base = load_model(tiny_model_dir, dtype=torch.bfloat16).state_dict()
    beside = {
        name.removeprefix("base_model.model.").replace("base_layer.", ""): tensor
        for name, tensor in saved.items()
        if "lora_" not in name
    }
    assert {name.rpartition(".")[2] for name in beside} == {"weight", "bias"}
    for name, tensor in beside.items():
        moved = (tensor != base[name].float()).float().mean().item()
        assert moved > 0.99, (name, moved)  # in bfloat16 it was 0.15


@pytest.mark.usefixtures("arithmetic")
def test_an_interrupted_run_ends_in_the_same_bytes(tiny_model_dir: Path, tmp_path: Path) -> None:
    calls = 0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:  # after the dry run: in step 2 of 3
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy_sum(logits, targets)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fine_tune(recipe_for(tiny_model_dir, whole, **BESIDE))
    assert not fine_tune(recipe_for(tiny_model_dir, cut, **BESIDE), loss=loss).is_finished

    fine_tune(recipe_for(tiny_model_dir, cut, **BESIDE), resume=True)

    assert (cut / NAME).read_bytes() == (whole / NAME).read_bytes()


def test_any_peft_user_can_load_what_was_trained(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    fine_tune(recipe_for(tiny_model_dir, tmp_path / "out", **BESIDE))

    base = load_model(tiny_model_dir, dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    weight = loaded.get_output_embeddings().weight
    saved = load_file(tmp_path / "out" / NAME)["base_model.model.transformer.output_layer.weight"]
    assert torch.equal(weight.float(), saved.to(weight.dtype).float())


def test_a_quantized_module_is_not_saved_in_full(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_for(
        tiny_model_dir, tmp_path / "out", "model.compute=int8", modules_to_save=["dense_h_to_4h"]
    )

    with pytest.raises(RecipeError, match="dense_h_to_4h, whose weights are quantized"):
        fine_tune(recipe)


def test_the_reference_of_pairs_is_the_base_without_what_was_trained_beside(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "不知道。"}
        for row in ROWS
    ]
    (tmp_path / "rows.json").write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    steps = ("preference.stage=dpo", "training.learning_rate=1e-3", "training.max_steps=3")
    recipe = recipe_for(tiny_model_dir, tmp_path / "out", *steps, modules_to_save=["output_layer"])

    result = fine_tune(recipe)

    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)  # the policy is its own reference
    assert losses[-1] < 0.6
    assert not [proof for proof in result.proofs if proof.verdict == "failed"], result.proofs
