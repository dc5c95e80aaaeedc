"""The four LoRA runs of the original code, repeated by our loop."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from glmtune.data.batches import Batch, MicroBatch
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model
from glmtune.objective.next_token import NextToken
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.alarms import Alarms
from glmtune.train.checkpoint import TrainerState
from glmtune.train.engines.plain import PlainEngine
from glmtune.train.output import RunFolder
from glmtune.train.processes import Processes
from glmtune.train.step import optimizer_step
from glmtune.train.training import Task, Training
from glmtune.use.export import merge

RUNS = {  # name: (largest error of a trained tensor, what a step's loss is a mean over)
    "constant_lr": (1e-4, "tokens"),
    "tutorial_like": (1e-5, "tokens"),
    "accumulate_2_decay": (1e-5, "micro_batches"),
    "accumulate_2_token_mean": (1e-5, "tokens"),
}


def attach_reference_adapter(golden: Path) -> Any:
    model = load_model(str(golden / "tiny-model"), dtype=torch.float32)
    model = lora.attach(model, LoraSection(r=8, lora_alpha=8, target_modules=("query_key_value",)))
    initial = load_file(golden / "lora" / "init_lora_A.safetensors")
    for name, layer in adapted_layers(model):
        layer.lora_A["default"].weight.data.copy_(initial[f"{name}.lora_A.weight"])
    return model


def recipe_of(settings: dict[str, Any], average: str) -> Recipe:
    training = {
        "learning_rate": settings["lr"],
        "adam_epsilon": settings["eps"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "lr_scheduler_type": settings["schedule"],
        "average": average,
    }
    others = {"model": {"name_or_path": "m"}, "data": {"train": "r"}, "output": {"dir": "o"}}
    return build_recipe({**others, "training": training})


def as_micro_batch(tensors: dict[str, list[list[int]]], row: int) -> MicroBatch:
    return MicroBatch(**{name: torch.tensor(rows) for name, rows in tensors.items()}, rows=(row,))


@pytest.mark.parametrize("name", RUNS)
def test_the_reference_run_is_reproduced(golden: Path, name: str) -> None:
    tolerance, average = RUNS[name]
    reference = json.loads((golden / "lora" / "lora.json").read_text(encoding="utf-8"))
    expected = reference["runs"][name]
    accumulation = expected["settings"]["accumulation"]
    recipe = recipe_of(expected["settings"], average)
    model = attach_reference_adapter(golden)
    num_steps = len(reference["batches"]) // accumulation
    losses: list[float] = []

    def record(logits: Tensor, targets: Tensor) -> Tensor:
        loss = cross_entropy_sum(logits, targets)
        losses.append(loss.item() / len(targets))
        return loss

    rows: Any = SimpleNamespace(lengths=[0] * len(reference["batches"]))
    plan: Any = None  # the batches are those of the reference
    training = Training(
        recipe=recipe,
        engine=PlainEngine(model, recipe.training, Processes(Accelerator(cpu=True)), num_steps),
        data=rows,
        task=Task(NextToken(record)),
        plan=plan,
        num_steps=num_steps,
        state=TrainerState(),
        folder=RunFolder(Path()),
        alarms=Alarms(recipe.checks),
    )
    rates, norms = [], []
    for step in range(num_steps):
        rates.append(training.engine.scheduler.get_last_lr()[0])
        parts = range(step * accumulation, (step + 1) * accumulation)
        batch = Batch(tuple(as_micro_batch(reference["batches"][i], i) for i in parts))
        norms.append(optimizer_step(training, batch).grad_norm)
        training.state.step += 1

    assert rates == pytest.approx(expected["learning_rates"], rel=1e-9)
    assert losses == pytest.approx(expected["loss_per_batch"], abs=1e-4)
    assert norms == pytest.approx(expected["grad_norm_before_clip_per_update"], abs=1e-3)
    trained = load_file(golden / "lora" / name / "adapter_model.safetensors")
    for layer_name, layer in adapted_layers(model):
        for side, weight in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            reference_weight = trained[f"base_model.model.{layer_name}.{side}.weight"]
            torch.testing.assert_close(
                weight["default"].weight.data, reference_weight, atol=tolerance, rtol=0
            )


@pytest.mark.parametrize("name", RUNS)
def test_an_adapter_of_the_original_gives_its_logits_attached_and_merged(
    golden: Path, name: str
) -> None:
    reference = json.loads((golden / "lora" / "lora.json").read_text(encoding="utf-8"))
    after = load_file(golden / "lora" / name / "after_training.safetensors")
    batch = as_micro_batch(reference["batches"][0], 0)
    model = load_model(str(golden / "tiny-model"), dtype=torch.float32)
    model = lora.load(model, golden / "lora" / name).eval()
    real = batch.attention_mask == 1

    with torch.no_grad():
        attached = model(**batch.inputs()).logits
        merged_model = merge.merge(model)
        merged = merged_model(**batch.inputs()).logits

    torch.testing.assert_close(attached[real], after["logits"][real], atol=1e-3, rtol=0)
    torch.testing.assert_close(merged[real], after["merged_logits"][real], atol=1e-3, rtol=0)
    qkv = merged_model.get_submodule("transformer.encoder.layers.0.self_attention.query_key_value")
    torch.testing.assert_close(qkv.weight, after["merged_layer0_qkv"], atol=1e-4, rtol=0)
