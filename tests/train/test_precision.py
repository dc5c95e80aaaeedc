"""Complete runs in float16: overflows are survived, counted and resumed, or end the run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glmtune import machine
from glmtune.errors import RecipeError, TrainingError
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune

PLACES = [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西"), ("昆明", "云南")]
ROWS = [
    {"instruction": f"{city}在哪里", "input": "", "output": f"{city}在{region}。" * (1 + index % 3)}
    for index, (city, region) in enumerate(PLACES * 2)
]


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    text = json.dumps(ROWS, ensure_ascii=False)
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")


def recipe_for(
    model: Path, output: Path, *overrides: str, adapter: dict[str, Any] | None = None
) -> Recipe:
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(output.parent / "rows.json"), "max_length": 120},
        "adapter": adapter or {"r": 4, "lora_dropout": 0.1},
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 2,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 2,
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


FP16 = ("training.fp16=true", "model.dtype=float16")


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


class _Overflow(torch.autograd.Function):
    """Pass a loss on; its gradient is beyond float16."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 1e9


def planted(*at: int, interrupt: int | None = None) -> Any:
    """A loss whose gradient overflows at some of its calls with a gradient; Ctrl-C at another."""
    calls = 0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == interrupt and torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGINT)
        total = cross_entropy_sum(logits, targets)
        return _Overflow.apply(total) if calls in at and torch.is_grad_enabled() else total  # type: ignore[no-untyped-call,no-any-return]

    return loss


@pytest.mark.parametrize("model", ["tiny_model_dir", "tiny_llama_dir"])
def test_an_overflow_in_float16_skips_one_step_and_changes_nothing_in_it(
    model: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    saved = ("training.save_steps=1", "training.save_total_limit=null")
    recipe = recipe_for(request.getfixturevalue(model), output, *FP16, *saved)

    with caplog.at_level("INFO"):
        result = fine_tune(recipe, loss=planted(4))  # the dry run's goes first: in step 2

    assert all(proof.verdict in ("passed", "not run") for proof in result.proofs), result.proofs
    lines = metrics(output)
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert [line["loss_scale"] for line in lines] == [65536] + 5 * [32768]
    assert [line["grad_norm"] is None for line in lines] == [n == 1 for n in range(6)]
    rates = [line["learning_rate"] for line in lines]
    assert rates[1] == rates[2]  # it waits, as in transformers' Trainer
    assert len(set(rates)) == 5
    before, after, later = (load_file(output / f"checkpoint-{n}" / NAME) for n in (1, 2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(before[name], later[name]) for name in before)
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}
    assert caplog.text.count("a gradient did not fit float16, so no weight was changed") == 1
    assert "step 2: a gradient did not fit" in caplog.text


NAME = "adapter_model.safetensors"


def test_a_float16_run_that_was_interrupted_ends_in_the_same_bytes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fine_tune(recipe_for(tiny_model_dir, whole, *FP16), loss=planted(4))

    first = fine_tune(recipe_for(tiny_model_dir, stopped, *FP16), loss=planted(4, interrupt=8))
    assert not first.is_finished
    assert 2 <= first.num_steps < 6
    fine_tune(recipe_for(tiny_model_dir, stopped, *FP16), resume=True)

    assert (stopped / NAME).read_bytes() == (whole / NAME).read_bytes()
    keys = ("step", "loss", "grad_norm", "loss_scale", "skipped_steps")
    assert [[line[k] for k in keys] for line in metrics(stopped)] == [
        [line[k] for k in keys] for line in metrics(whole)
    ]
    assert metrics(stopped)[-1]["skipped_steps"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_float16_learns_as_float32_does(tiny_llama_dir: Path, tmp_path: Path, method: str) -> None:
    losses = {}
    for name in ("fp16", "bf16", "plain"):
        half = () if name == "plain" else (f"training.{name}=true",)
        rate = {"lora": 1e-2, "full": 1e-3}[method]
        changes = (f"training.learning_rate={rate}", "training.num_train_epochs=4", *half)
        adapter = {"method": method}
        fine_tune(recipe_for(tiny_llama_dir, tmp_path / name, *changes, adapter=adapter))
        losses[name] = [line["loss"] for line in metrics(tmp_path / name)]

    assert losses["fp16"] != losses["plain"]
    assert losses["fp16"] == pytest.approx(losses["plain"], rel=1e-3)
    assert losses["bf16"] == pytest.approx(losses["plain"], abs=5e-2)
    assert sum(losses["plain"][-3:]) < sum(losses["plain"][:3]) - 0.5  # of an epoch each


def test_a_gradient_that_never_fits_ends_the_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny_model_dir, tmp_path / "out", *FP16, "checks.smallest_loss_scale=10000")

    with pytest.raises(TrainingError) as caught:
        fine_tune(recipe, loss=planted(*range(4, 100)))

    message = str(caught.value)
    assert message.startswith("step 4: a gradient is not finite in float16, though the loss is ")
    assert "by no more than 16384 after 3 skipped steps. Rows: " in message
    assert "rows.json:" in message


def test_a_loss_that_is_not_finite_is_no_matter_of_scale(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_sum(logits, targets) * (float("inf") if calls.pop() else 1)

    calls = [1, 0, 0]
    with pytest.raises(TrainingError, match="step 1: the loss is inf"):
        fine_tune(recipe_for(tiny_model_dir, tmp_path / "out", *FP16), loss=loss)


@pytest.mark.parametrize("able", [True, False])
def test_a_frozen_base_that_computes_in_float16_gets_a_scaled_loss(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    dtypes = {torch.float32} | ({torch.float16} if able else set())
    monkeypatch.setattr(machine, "fast_cpu_dtypes", lambda: dtypes)

    steps = "training.max_steps=1"
    fine_tune(recipe_for(tiny_model_dir, tmp_path / "out", "model.dtype=float16", steps))

    [line] = metrics(tmp_path / "out")
    assert line.get("loss_scale") == (65536 if able else None)  # or products are in float32
    tensors = load_file(tmp_path / "out" / NAME)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_two_precisions_at_once_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"bf16 and training\.fp16 are both true"):
        recipe_for(tiny_model_dir, tmp_path / "x", "training.fp16=true", "training.bf16=true")


PLANT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from glmtune.recipe.reading import load_recipe
from glmtune.train.run import fine_tune
from test_precision import planted

fine_tune(load_recipe(sys.argv[2], sys.argv[3:]), loss=planted(*[5] * (os.environ["RANK"] == "1")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["null", "fsdp2"])
def test_processes_skip_a_step_together(
    tiny_llama_dir: Path, tmp_path: Path, sharding: str
) -> None:
    output = tmp_path / "out"
    recipe = recipe_for(
        tiny_llama_dir, output, "training.fp16=true", f"training.sharding={sharding}"
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (tmp_path / "plant.py").write_text(PLANT, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(tmp_path / "plant.py"), str(Path(__file__).parent), str(tmp_path / "recipe.yaml")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    lines = metrics(output)
    assert [line["skipped_steps"] for line in lines][-1] == 1, lines
    [skipped] = [n for n, line in enumerate(lines) if line["grad_norm"] is None]
    assert lines[skipped]["learning_rate"] == lines[skipped + 1]["learning_rate"]


@pytest.mark.parametrize("key", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_autocast_over_a_half_precision_base_trains_without_dropout(
    tiny_model_dir: Path, tmp_path: Path, method: str, key: str
) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    dtype = {"bf16": "bfloat16", "fp16": "float16"}[key]
    adapter = {"method": method, "r": 4, "lora_dropout": 0.0}
    changes = (f"training.{key}=true", f"model.dtype={dtype}", "max_steps=2")

    fine_tune(recipe_for(tiny_model_dir, tmp_path / "out", *changes, adapter=adapter))

    plain = ("model.dtype=float32", "max_steps=2")
    fine_tune(recipe_for(tiny_model_dir, tmp_path / "plain", *plain, adapter=adapter))
    half, whole = (
        [line["loss"] for line in metrics(tmp_path / name) if "loss" in line]
        for name in ("out", "plain")
    )
    assert len(whole) == 2
    assert half != whole  # products are in half precision, or this would show nothing
    assert half == pytest.approx(whole, abs={"bf16": 0.05, "fp16": 0.025}[key])


def test_autocast_in_another_half_precision_than_the_bases_is_refused_before_it_is_loaded(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(
        tiny_model_dir, tmp_path / "out", "training.fp16=true", "model.dtype=bfloat16"
    )

    with pytest.raises(RecipeError, match=r"computes in float16, and the frozen base is in bfl"):
        fine_tune(recipe)
