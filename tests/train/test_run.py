"""Complete runs on a tiny ChatGLM: what they write, and how they stop and resume."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glmtune.cli.printing import training_line
from glmtune.data import batches
from glmtune.data.batches import MicroBatch
from glmtune.errors import (
    CheckpointError,
    DataError,
    GlmtuneError,
    OutputError,
    RecipeError,
    TrainingError,
)
from glmtune.files import sha256_of_file
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.model.chatglm.train_tokenizer import train_tokenizer
from glmtune.prove.proof import ALIVE, FORGETS, PROOFS, STOPS, TEMPLATE
from glmtune.recipe.methods import Ia3Section
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train import run
from glmtune.train.load_model import attach
from glmtune.train.output import clear_run
from glmtune.train.run import Result, fine_tune

ROWS = [
    {"instruction": f"{city}在哪里", "input": "", "output": f"{city}在{region}。" * (1 + index % 3)}
    for index, (city, region) in enumerate(
        [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西"), ("昆明", "云南")]
        * 2
    )
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=0), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


def recipe_for(model: Path, rows: Path, output: Path, *overrides: str) -> Recipe:
    tree = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {"train": str(rows), "max_length": 90},
        "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "training": {
            "per_device_train_batch_size": 1,  # packs of 90 tokens
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 2,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 2,
            "use_cpu": True,
        },
        "checks": {"stock_reader": False},
        "output": {"dir": str(output), "report_to": "none"},
    }
    return build_recipe(tree, overrides)


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of training and evaluation."""
    return [line for line in all_metrics(output) if "general_loss" not in line]


def all_metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def verdicts(result: Result) -> dict[str, str]:
    return {proof.name: proof.verdict for proof in result.proofs}


def weights(output: Path) -> bytes:
    return (output / "adapter_model.safetensors").read_bytes()


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


def test_a_run_leaves_an_adapter_that_any_peft_user_can_load(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    output = tmp_path / "out"
    result = fine_tune(recipe_for(tiny_model_dir, rows, output))

    assert (result.adapter_dir, result.num_steps, result.is_finished) == (output, 6, True)
    written = {path.name for path in output.iterdir()}
    assert written >= {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "glmtune.json",
        "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "generation_config.json", "recipe.yaml", "metrics.jsonl", "loss.svg", "checkpoint-6",
    }  # fmt: skip
    assert not [name for name in written if name.endswith(".partial")]
    model = AutoPeftModelForCausalLM.from_pretrained(output)
    assert model.peft_config["default"].r == 4
    assert AutoTokenizer.from_pretrained(output).encode("广州")
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "## Proofs" in card
    assert str(tmp_path) not in card
    lines = metrics(output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize(
    ("call", "finished_steps"),
    [(7, 2), (8, 3)],  # after the dry run's: the 6th is in the middle of step 3, the 7th its last
)
def test_a_run_that_was_interrupted_ends_in_the_same_bytes(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, call: int, finished_steps: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fine_tune(recipe_for(tiny_model_dir, rows, whole))

    first = fine_tune(recipe_for(tiny_model_dir, rows, stopped), loss=interrupting(call))
    assert (first.is_finished, first.num_steps) == (False, finished_steps)
    assert not (stopped / "adapter_config.json").exists()
    second = fine_tune(recipe_for(tiny_model_dir, rows, stopped), resume=True)

    assert second.is_finished
    assert weights(stopped) == weights(whole)
    keys = ("step", "loss", "learning_rate", "grad_norm")
    assert [[line[k] for k in keys] for line in metrics(stopped)] == [
        [line[k] for k in keys] for line in metrics(whole)
    ]


GENERAL = [{"prompt": f"{n} 加一等于几", "response": f"等于 {n + 1}。"} for n in range(20)]


@pytest.fixture
def replay(tmp_path: Path) -> str:
    path = tmp_path / "general.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) for row in GENERAL)
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"data.replay={{path: {path}, ratio: 0.7}}"


def test_general_rows_are_mixed_in_counted_and_resumed_to_the_same_bytes(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, replay: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, stopped, without = (tmp_path / name for name in ("whole", "stopped", "without"))
    with caplog.at_level("INFO"):
        fine_tune(recipe_for(tiny_model_dir, rows, whole, replay, "data.eval_fraction=0.2"))

    assert caplog.text.count("step 4: asked '[gMASK]sop<|user|>") == 2  # at the evaluation
    assert "step 8: asked" not in caplog.text  # those of the end are in the report

    steps = [line["replayed_rows"] for line in metrics(whole) if "replayed_rows" in line]
    assert steps[-1] == 2 * 6  # 0.7 of 8 rows, in each of two epochs
    assert len(steps) == 2 * 4  # of 14 rows
    facts = json.loads((whole / "report.json").read_text(encoding="utf-8"))["facts"]
    assert (facts["num_train_rows"], facts["num_replayed_rows"]) == (8, 6)
    assert facts["replay"]["num_examples"] == len(GENERAL)
    assert "General rows, mixed in" in (whole / "report.html").read_text(encoding="utf-8")

    recipe = recipe_for(tiny_model_dir, rows, stopped, replay, "data.eval_fraction=0.2")
    assert not fine_tune(recipe, loss=interrupting(8)).is_finished
    fine_tune(recipe, resume=True)

    assert weights(stopped) == weights(whole)
    keys = ("step", "loss", "eval_loss", "grad_norm", "replayed_rows")
    assert [[line.get(key) for key in keys] for line in metrics(stopped)] == [
        [line.get(key) for key in keys] for line in metrics(whole)
    ]
    fine_tune(recipe_for(tiny_model_dir, rows, without, "data.eval_fraction=0.2"))
    assert weights(without) != weights(whole)


def test_forgetting_is_measured_on_rows_of_the_users_own(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, replay: str
) -> None:
    own = f"checks.general_rows={tmp_path / 'general.jsonl'}"
    results = [
        fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / name, "max_steps=1", *more))
        for name, more in (("ours", ()), ("own", (own,)))
    ]

    details = [next(p.detail for p in each.proofs if p.name == FORGETS) for each in results]
    assert [detail.partition(" after, on ")[2][:15] for detail in details] == [
        "24 general rows",
        "20 general rows",
    ]
    ours, theirs = (each.base_general_loss for each in results)
    assert ours is not None
    assert theirs is not None
    assert ours != theirs
    with pytest.raises(DataError, match=r"none\.jsonl"):
        fine_tune(
            recipe_for(
                tiny_model_dir, rows, tmp_path / "no", f"checks.general_rows={tmp_path}/none.jsonl"
            )
        )
    assert not list(tmp_path.glob("no/*.safetensors"))


def test_fewer_general_rows_than_asked_for_are_warned_of_and_all_taken(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, replay: str, caplog: pytest.LogCaptureFixture
) -> None:
    many = replay.replace("0.7", "3")

    fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "out", many, "max_steps=8"))

    assert "asks for 30 general rows an epoch, and there are 20" in caplog.text
    assert metrics(tmp_path / "out")[-1]["replayed_rows"] == 20  # 30 rows in 8 steps of 4


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, rows, output))
    expected = weights(output)
    file = output / "checkpoint-6" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # one flipped bit
    file.write_bytes(content)

    with caplog.at_level("WARNING"):
        fine_tune(recipe_for(tiny_model_dir, rows, output), resume=True)

    assert "checkpoint-6 is damaged: adapter_model.safetensors is not what was written" in (
        caplog.text
    )
    assert weights(output) == expected


def test_resuming_with_another_recipe_is_refused_with_what_changed(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, rows, output), loss=interrupting(7))

    changes = ("learning_rate=1e-3", "data.max_length=100")
    with pytest.raises(CheckpointError) as caught:
        fine_tune(recipe_for(tiny_model_dir, rows, output, *changes), resume=True)
    message = str(caught.value)
    assert (
        "something changed: data.max_length (was 90, now 100); training.learning_rate "
        "(was 0.005, now 0.001). Undo the change, or train on from its adapter"
    ) in message
    [advice] = re.findall(r"adapter.name_or_path=\S+", message)  # is followed
    on = fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "on", *changes, advice))
    assert on.is_finished
    other = recipe_for(tiny_model_dir, rows, output).model_copy(update={"adapter": Ia3Section()})
    with pytest.raises(CheckpointError, match=r"changed: adapter\.method \(was lora, now ia3\)\."):
        fine_tune(other, resume=True)
    rows.write_text(json.dumps(ROWS[:9], ensure_ascii=False), encoding="utf-8")
    with pytest.raises(CheckpointError, match="something changed: training data"):
        fine_tune(recipe_for(tiny_model_dir, rows, output), resume=True)


def test_resuming_with_another_tokenizer_or_layout_is_refused_with_what_changed(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    model, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_model_dir, model)
    fine_tune(recipe_for(model, rows, output), loss=interrupting(7))

    with pytest.raises(
        CheckpointError,
        match=r"changed: data\.layout \(was official, now tutorial\); template or tokenizer \(",
    ):
        fine_tune(recipe_for(model, rows, output, "data.layout=tutorial"), resume=True)
    train_tokenizer(
        ["another text, of which " + chr(97 + n % 26) * 2 for n in range(200)], 300, model
    )
    with pytest.raises(CheckpointError, match=r"changed: template or tokenizer \("):
        fine_tune(recipe_for(model, rows, output), resume=True)


def test_another_spelling_of_a_path_is_no_change(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, rows, whole))
    model, link = tmp_path / "model", tmp_path / "link"
    model.symlink_to(tiny_model_dir)
    link.symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    spellings = [("model", "rows.json"), ("./model/", "./rows.json"), (f"{link}/model", f"{rows}")]

    for calls, (base, data) in zip((5, 4), spellings, strict=False):
        recipe = recipe_for(Path(base), rows, output, f"data.train={data}")
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"name_or_path": base})}
        )
        fine_tune(recipe, resume=calls == 4, loss=interrupting(calls))
    monkeypatch.chdir(model)
    base, data = spellings[-1]
    assert fine_tune(recipe_for(Path(base), Path(data), output), resume=True).is_finished

    assert weights(output) == weights(whole)


def test_an_earlier_checkpoint_without_its_recipe_is_compared_with_that_of_the_folder(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, rows, output), loss=interrupting(7))
    [checkpoint] = output.glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    del state["recipe"], state["working_directory"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    sums = json.loads((checkpoint / "checksums.json").read_text(encoding="utf-8"))
    sums["trainer_state.json"] = sha256_of_file(checkpoint / "trainer_state.json")
    (checkpoint / "checksums.json").write_text(json.dumps(sums), encoding="utf-8")

    other = recipe_for(tiny_model_dir, rows, output, "adapter.r=8")
    with pytest.raises(CheckpointError, match=r"changed: adapter\.r \(was 4, now 8\)\. Undo"):
        fine_tune(other, resume=True)
    text = (output / "recipe.yaml").read_text(encoding="utf-8")
    (output / "recipe.yaml").write_text(text.replace("r: 4", "r: 5"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"changed: recipe \(was \w{16}, now \w{16}\)"):
        fine_tune(other, resume=True)
    assert fine_tune(recipe_for(tiny_model_dir, rows, output), resume=True).is_finished


def test_an_output_folder_that_holds_a_run_is_not_touched_unless_asked(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, rows, output))
    (output / "my_notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}

    with pytest.raises(OutputError, match="already holds a run"):
        fine_tune(recipe_for(tiny_model_dir, rows, output))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before

    fine_tune(recipe_for(tiny_model_dir, rows, output, "overwrite=true", "max_steps=1"))
    assert (output / "my_notes.txt").read_text() == "mine"
    assert not (output / "checkpoint-6").exists()


def test_a_recipe_that_fails_leaves_the_run_it_would_have_replaced(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, rows, output))
    kept = weights(output)

    recipe = recipe_for(tiny_model_dir, tmp_path / "none.json", output, "overwrite=true")
    with pytest.raises(Exception, match=r"none\.json"):
        fine_tune(recipe)

    assert weights(output) == kept


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (float("inf"), CheckpointError, r"dense_h_to_4h.weight holds 1 of .* not finite"),
        (3e38, TrainingError, r"step 1: the loss is nan.*layers.1.mlp.dense_h_to_4h.*rows.json:"),
    ],
)
def test_a_weight_that_is_not_finite_stops_the_run_and_is_named(
    tiny_model_dir: Path,
    rows: Path,
    tmp_path: Path,
    value: float,
    kind: type[GlmtuneError],
    message: str,
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model_dir.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    name = "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"
    tensors[name][0, : 1 if kind is CheckpointError else None] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(kind, match=message):
        fine_tune(recipe_for(broken, rows, tmp_path / "out"))


def test_the_best_checkpoint_becomes_the_adapter_and_is_told_of(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    calls = 0

    def spoiled(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        sign = 1 if calls <= 6 else -1  # from step 4 on it unlearns
        return sign * cross_entropy_sum(logits, targets)

    def learn_then_unlearn(logits: Tensor, targets: Tensor) -> Tensor:
        loss = spoiled if torch.is_grad_enabled() else cross_entropy_sum
        return loss(logits, targets)

    recipe = recipe_for(
        tiny_model_dir, rows, output, "data.eval_fraction=0.2", "eval_strategy=steps",
        "eval_steps=1", "num_train_epochs=4",
    )  # fmt: skip
    result = fine_tune(recipe, loss=learn_then_unlearn)

    lines = metrics(output)
    held_out = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(held_out, key=lambda step: held_out[step])
    last = max(held_out)
    assert best < last  # or the last checkpoint would do
    assert weights(output) == weights(output / f"checkpoint-{best}")
    # All that is told of the run is told of the weights that were saved.
    loss = next(line["loss"] for line in lines if line["step"] == best and "loss" in line)
    assert (result.saved_step, result.num_steps) == (best, last)
    assert (result.loss, result.eval_loss) == (loss, held_out[best])
    assert (
        f"Adapter of step {best}, the best of {last}, loss {loss:.4f}, "
        f"held-out loss {held_out[best]:.4f}: {output}"
    ) == training_line("Adapter", result)
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"| loss, last | {loss:.4f} |" in card
    assert f"| held-out loss, last | {held_out[best]:.4f} |" in card
    assert f"| held-out loss, best | {held_out[best]:.4f} |" in card
    facts = json.loads((output / "report.json").read_text(encoding="utf-8"))["facts"]
    assert facts["saved_step"] == best
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"the weights are those of step {best}" in page

    # A damaged one is not restored.
    name = f"checkpoint-{best}"
    (output / name / "checksums.json").write_text("{}")
    with caplog.at_level("WARNING"):
        again = fine_tune(recipe, resume=True)
    assert f"{name} is damaged: " in caplog.text
    assert again.saved_step == last
    assert weights(output) == weights(output / f"checkpoint-{last}")


def test_gradient_checkpointing_leaves_the_result_unchanged(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "a"))
    fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "b", "gradient_checkpointing=true"))

    one, other = (load_file(tmp_path / x / "adapter_model.safetensors") for x in "ab")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_at_once(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    for name, complaint in (("tensorbord", "accelerate knows"), ("dvclive", "not installed")):
        with pytest.raises(RecipeError, match=complaint):
            fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "out", f"report_to={name}"))


def test_tensorboard_gets_the_curves(tiny_model_dir: Path, rows: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    output = tmp_path / "out"
    fine_tune(recipe_for(tiny_model_dir, rows, output, "report_to=tensorboard"))

    events = accumulators.EventAccumulator(str(output / "runs" / "glmtune"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in metrics(output)]


def test_a_run_stops_when_the_held_out_rows_get_no_better(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps(ROWS[:2], ensure_ascii=False), encoding="utf-8")
    overrides = ["eval_strategy=steps", "eval_steps=1", "num_train_epochs=8"]
    overrides += [f"data.eval={held_out}", "early_stopping_patience=2", "lint.errors=report"]

    def unlearn(logits: Tensor, targets: Tensor) -> Tensor:
        sign = -1 if torch.is_grad_enabled() else 1
        return sign * cross_entropy_sum(logits, targets)

    output = tmp_path / "out"
    for more in ((), ("load_best_model_at_end=false",)):
        recipe = recipe_for(tiny_model_dir, rows, output, *overrides, *more, "save_strategy=epoch")
        result = fine_tune(recipe, loss=unlearn)

        assert result.is_finished
        assert result.num_steps == 3  # the best was the first, and two were worse
        held, steps = weights(output), [line["step"] for line in all_metrics(output)]
        for _ in range(2):  # and it stays so, resumed or not
            resumed = fine_tune(recipe, resume=True, loss=unlearn)
            assert resumed.num_steps == 3
            assert weights(output) == held
            assert [line["step"] for line in all_metrics(output)] == steps
        clear_run(output)


def test_a_folder_that_a_run_writes_into_is_closed_to_others(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    refused: list[str] = []

    def start_another(logits: Tensor, targets: Tensor) -> Tensor:
        for resume in (False, True) if not refused else ():
            with pytest.raises(OutputError) as caught:
                fine_tune(recipe_for(tiny_model_dir, rows, output), resume=resume)
            refused.append(str(caught.value))
        return cross_entropy_sum(logits, targets)

    result = fine_tune(recipe_for(tiny_model_dir, rows, output), loss=start_another)

    assert result.is_finished
    assert len(refused) == 2
    assert f"another run is writing into this folder (process {os.getpid()} on " in refused[1]
    assert [line["step"] for line in metrics(output)] == [1, 2, 3, 4, 5, 6]
    assert fine_tune(recipe_for(tiny_model_dir, rows, output), resume=True).is_finished


def test_the_report_of_a_run_has_its_proofs(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    checked = "checks.stock_reader=true"
    result = fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "out", checked))

    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    verdicts_shown = {proof["name"]: proof["verdict"] for proof in report["facts"]["proofs"]}
    assert verdicts_shown == verdicts(result)
    assert tuple(verdicts_shown) == PROOFS
    assert verdicts_shown.pop(STOPS) in ("passed", "failed")  # it is barely trained
    assert set(verdicts_shown.values()) == {"passed"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_a_run_in_which_next_to_nothing_moves_fails_and_says_why(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_for(tiny_model_dir, rows, tmp_path / "out", "max_grad_norm=1e-12")

    with pytest.raises(TrainingError, match=r"next to nothing was learned\. A max_grad_norm or"):
        fine_tune(recipe)

    assert "max_grad_norm 1e-12 makes every gradient so small" in caplog.text  # before it started
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    shown = {proof["name"]: proof["verdict"] for proof in report["facts"]["proofs"]}
    assert shown[ALIVE] == "failed"


def test_packs_that_are_scored_otherwise_than_their_rows_end_the_run_before_it_starts(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = batches.micro_batch_of

    def mixed(*args: Any) -> MicroBatch:
        part = make(*args)
        whole = torch.tensor([0, part.input_ids.size(1)], dtype=torch.int32)
        return replace(part, cu_seq_lens=whole)

    monkeypatch.setattr(batches, "micro_batch_of", mixed)

    with pytest.raises(TrainingError, match="The rows of a pack see each other"):
        fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "out"))

    assert not list(tmp_path.glob("out/checkpoint-*"))


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_rows_that_change_or_vanish_during_a_run_do_it_no_harm_and_are_named(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, change: str
) -> None:
    output = tmp_path / "out"
    whole = fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "whole"))

    def meddle(logits: Tensor, targets: Tensor) -> Tensor:
        if change == "deleted":
            rows.unlink(missing_ok=True)
        else:
            rows.write_text(json.dumps([{"instruction": "别的", "output": "另外的"}] * 3))
        return cross_entropy_sum(logits, targets)

    result = fine_tune(recipe_for(tiny_model_dir, rows, output), loss=meddle)

    assert weights(output) == weights(tmp_path / "whole")
    assert verdicts(result) == verdicts(whole)
    [detail] = [proof.detail for proof in result.proofs if proof.name == TEMPLATE]
    assert detail == (
        f"the ids before 10 answers are those of their prompts; {rows} changed or went away while "
        "the run learned the rows as they were before"
    )
    assert (output / "report.html").is_file()


def test_a_frozen_adapter_is_named_before_the_first_step(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frozen(recipe: Recipe, base: Any) -> Any:
        return attach(recipe, base).requires_grad_(False)

    monkeypatch.setattr(run, "attach", frozen)

    with pytest.raises(TrainingError, match=r"adapter.method=lora should train .*query_key_value"):
        fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "out"))


def test_prompts_are_answered_in_the_middle_of_a_run(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "a", "checks.sample_steps=2"))
    fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "b"))

    assert "step 2: asked '[gMASK]sop<|user|>" in caplog.text
    assert weights(tmp_path / "a") == weights(tmp_path / "b")  # asking changes nothing


def test_a_new_run_removes_the_curve_of_an_old_version_too(tmp_path: Path) -> None:
    for name in ("loss.png", "loss.svg", "report.html", "my.txt"):
        (tmp_path / name).write_text("old")

    clear_run(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["my.txt"]
