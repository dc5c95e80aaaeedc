"""Complete runs by methods other than LoRA: what they write, and how they stop and resume."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmtune.errors import OutputError, RecipeError, TrainingError
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.model.load import load_model
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session

ROWS = [
    {"instruction": f"{city}在哪里", "input": "", "output": f"{city}在{region}。" * (1 + index % 3)}
    for index, (city, region) in enumerate(
        [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西"), ("昆明", "云南")]
        * 2
    )
]


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def recipe_for(
    model: Path, output: Path, adapter: dict[str, Any], *overrides: str, **training: Any
) -> Recipe:
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(output.parent / "rows.json"), "max_length": 120},
        "adapter": adapter,
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 2,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 2,
            "use_cpu": True,
            **training,
        },
        "lint": {"before_training": False},
        "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 4},
        "output": {"dir": str(output), "report_to": "none"},
    }
    return build_recipe(tree, overrides)


def weights(output: Path) -> bytes:
    [file] = [f for f in output.glob("*model.safetensors") if f.is_file()]
    return file.read_bytes()


def interrupting(call: int) -> Any:
    """A loss that asks the run to stop at its `call`-th micro-batch, as Ctrl-C does."""
    calls = 0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy_sum(logits, targets)

    return loss


def test_full_tuning_leaves_a_model_in_the_layout_it_came_in(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    fine_tune(recipe_for(tiny_model_dir, output, {"method": "full"}))

    assert not (output / "adapter_config.json").exists()
    before, after = (
        load_model(f, dtype=torch.float32).state_dict() for f in (tiny_model_dir, output)
    )
    assert list(before) == list(after)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [name for name in before if "inv_freq" not in name]
    config = json.loads((output / "config.json").read_text())
    assert (config["model_type"], config["padded_vocab_size"]) == ("chatglm", 512)
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))["facts"]
    verdicts = {proof["name"]: proof["verdict"] for proof in report["proofs"]}
    assert verdicts.pop("what the base knew is still there") in ("passed", "failed")
    assert verdicts == {
        "training scores a row as answering does": "passed",
        "all that is trained has learned": "passed",
        "reloaded from disk it is the same": "passed",
        "streamed from disk it answers the same": "passed",
        "merged into the base it answers the same": "not run",  # there is nothing to merge
        "chat asks as training did": "passed",
        "stock transformers asks the same": "not run",  # by the recipe
        "answers end by themselves": "not run",
    }
    session = open_session(str(output), sampling=Sampling(temperature=0, max_new_tokens=4))
    assert session.template.description["layout"] == "official"


def test_a_tuned_model_is_prompted_in_the_layout_it_was_trained_in(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    fine_tune(
        recipe_for(tiny_model_dir, output, {"method": "full"}, "layout=tutorial", max_steps=1)
    )

    assert open_session(str(output)).template.description["layout"] == "tutorial"


RESUMED: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "pissa": {"init_lora_weights": "pissa_niter_4", "loraplus_lr_ratio": 4, "lora_dropout": 0.1},
}


@pytest.mark.parametrize("adapter", RESUMED.values(), ids=RESUMED)
def test_a_run_that_was_interrupted_ends_in_the_same_bytes(
    tiny_model_dir: Path, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fine_tune(recipe_for(tiny_model_dir, whole, adapter))

    first = fine_tune(recipe_for(tiny_model_dir, stopped, adapter), loss=interrupting(7))
    assert not first.is_finished
    assert 0 < first.num_steps < 6
    assert not list(stopped.glob("*.safetensors"))
    second = fine_tune(recipe_for(tiny_model_dir, stopped, adapter), resume=True)

    assert second.is_finished
    assert weights(stopped) == weights(whole)


def test_the_best_checkpoint_becomes_the_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    recipe = recipe_for(
        tiny_model_dir, output, {"method": "full"}, "data.eval_fraction=0.2",
        eval_strategy="steps", eval_steps=1, num_train_epochs=3,
    )  # fmt: skip
    calls = 0

    def spoiled(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        sign = -1 if torch.is_grad_enabled() and calls > 4 else 1  # then it unlearns
        return sign * cross_entropy_sum(logits, targets)

    fine_tune(recipe, loss=spoiled)

    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(held_out, key=lambda step: held_out[step])
    assert best < max(held_out)  # or the last checkpoint would do
    assert weights(output) == weights(output / f"checkpoint-{best}")


def test_a_folder_with_somebodys_model_is_never_overwritten(
    tiny_model_dir: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    for file in tiny_llama_dir.iterdir():
        (output / file.name).write_bytes(file.read_bytes())

    with pytest.raises(OutputError, match="holds a model that glmtune did not write"):
        fine_tune(recipe_for(tiny_model_dir, output, {"method": "full"}, "overwrite=true"))

    assert weights(output) == weights(tiny_llama_dir)


def test_a_full_model_that_glmtune_wrote_is_replaced_only_with_overwrite(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, output, {"method": "full"}, max_steps=1))
    (output / "my_notes.txt").write_text("mine")
    recipe = recipe_for(tiny_model_dir, output, {"method": "lora"}, max_steps=1)

    with pytest.raises(OutputError, match="already holds a run"):
        fine_tune(recipe)
    fine_tune(recipe_for(tiny_model_dir, output, {"method": "lora"}, "overwrite=true", max_steps=1))

    assert not (output / "model.safetensors").exists()
    assert not (output / "config.json").exists()
    assert (output / "adapter_config.json").exists()
    assert (output / "my_notes.txt").exists()


def test_method_none_measures_the_base_and_changes_nothing(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    result = fine_tune(
        recipe_for(tiny_llama_dir, output, {"method": "none"}, "data.eval_fraction=0.2")
    )

    assert (result.num_steps, result.loss) == (0, None)
    assert result.eval_loss is not None
    assert result.eval_loss > 1
    assert {"report.html", "metrics.jsonl"} <= {path.name for path in output.iterdir()}
    assert not list(output.rglob("*.safetensors"))


def tensors_in(tree: Any) -> list[Tensor]:
    """All of them, however deep bitsandbytes nests them."""
    if isinstance(tree, dict):
        return [tensor for value in tree.values() for tensor in tensors_in(value)]
    return [tree] if torch.is_tensor(tree) else []


def test_neftune_label_smoothing_and_8_bit_optimizer_states_resume_to_the_same_bytes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    keys: dict[str, Any] = {
        "neftune_noise_alpha": 5, "label_smoothing_factor": 0.1, "optim": "adamw_bnb_8bit",
    }  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fine_tune(recipe_for(tiny_model_dir, whole, {"method": "full"}, **keys))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-4", cut / "checkpoint-4")

    fine_tune(recipe_for(tiny_model_dir, cut, {"method": "full"}, **keys), resume=True)

    name = "model.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
    optimizer = torch.load(whole / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert torch.uint8 in {tensor.dtype for tensor in tensors_in(optimizer["state"])}
    for key in keys:  # each of them does something
        rest = {other: value for other, value in keys.items() if other != key}
        fine_tune(recipe_for(tiny_model_dir, tmp_path / key, {"method": "full"}, **rest))
        assert (tmp_path / key / name).read_bytes() != (whole / name).read_bytes()


def test_held_out_rows_are_evaluated_without_label_smoothing(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    losses = []
    for smoothing in (0.0, 0.3):
        output = tmp_path / str(smoothing)
        recipe = recipe_for(
            tiny_model_dir, output, {"method": "lora"}, "data.eval_fraction=0.3",
            max_steps=1, learning_rate=1e-12, label_smoothing_factor=smoothing,
            load_best_model_at_end=False,
        )  # fmt: skip
        with contextlib.suppress(TrainingError):  # with this learning rate no layer learns
            fine_tune(recipe)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses.append({key: value for line in lines for key, value in line.items()})

    assert losses[0]["eval_loss"] == pytest.approx(losses[1]["eval_loss"], abs=1e-6)
    assert losses[1]["loss"] > losses[0]["loss"] + 0.03


def test_a_loss_of_ones_own_is_not_smoothed(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny_model_dir, tmp_path / "x", {}, label_smoothing_factor=0.1)

    with pytest.raises(RecipeError, match="smooths the cross-entropy, and `loss=` is another"):
        fine_tune(recipe, loss=lambda logits, targets: logits.sum() + 0 * targets.sum())


def test_an_optimizer_that_is_not_installed_is_named_before_anything_is_loaded(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tmp_path / "no-model", tmp_path / "x", {}, optim="adamw_bnb_8bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(RecipeError, match="which is not installed"):
        fine_tune(recipe)


@pytest.mark.parametrize("key", ["neftune_noise_alpha=5", "optim=adamw_bnb_8bit"])
def test_what_needs_unsharded_weights_is_refused_where_they_are_sharded(
    tmp_path: Path, key: str
) -> None:
    name = key.partition("=")[0]
    with pytest.raises(RecipeError, match=f"training.{name}.*Leave one of the two out"):
        recipe_for(tmp_path, tmp_path / "x", {}, f"training.{key}", "training.sharding=fsdp2")
