"""`import glmtune`: instant, and the same functions as the commands."""

import copy
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import glmtune
from glmtune.errors import CheckpointError, OutputError, RecipeError
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.library import quiet_libraries

CITIES = {"广州": "广东", "杭州": "浙江", "成都": "四川", "西安": "陕西", "昆明": "云南"}
ROWS = [
    {"instruction": f"{city}在哪里", "output": f"{city}在{of}。"} for city, of in CITIES.items()
]
QUICK: dict[str, Any] = {
    "r": 4, "dtype": "float32", "layout": "official", "use_cpu": True, "report_to": "none",
    "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2, "logging_steps": 1,
    "checks": {"stock_reader": False, "stop_prompts": 1, "max_new_tokens": 4, "forgetting": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a cache of its own."""
    folder = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLMTUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def seen() -> list[Mapping[str, Any]]:
    """The lines of metrics that the callback of `run` got."""
    return []


@pytest.fixture(scope="module")
def run(place: Path, tiny_model_dir: Path, seen: list[Mapping[str, Any]]) -> glmtune.Run:
    """Six steps on rows in memory, of which one is held out."""
    return glmtune.fine_tune(
        tiny_model_dir, ROWS, num_train_epochs=3, eval_fraction=0.2, learning_rate=2e-3,
        callbacks=[seen.append], **QUICK,
    )  # fmt: skip


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import glmtune; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)), 'fine_tune' in dir(glmtune))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "['glmtune'] True"


def test_every_public_name_is_there_and_another_is_an_attribute_error() -> None:
    for name in glmtune._PUBLIC:
        assert getattr(glmtune, name).__name__ == name

    with pytest.raises(AttributeError, match="'glmtune' has no attribute 'finetune'"):
        glmtune.finetune  # noqa: B018


def test_a_run_over_rows_in_memory_is_in_a_free_folder_and_tells_itself_in_five_lines(
    run: glmtune.Run, tiny_model_dir: Path
) -> None:
    name = tiny_model_dir.name
    title, losses, proofs, answer, folder = str(run).splitlines()

    assert run.is_finished
    assert run.folder == Path("out", name)
    assert folder == f"out/{name}"
    assert title.startswith(f"{name} · lora r=4 · 4 rows · ")
    assert losses.startswith("loss ")
    assert "6 steps" in losses
    assert "proofs passed" in proofs
    assert "在哪里 -> " in answer
    assert repr(run) == str(run)


def test_a_notebook_shows_verdict_curve_and_answers_without_a_network(run: glmtune.Run) -> None:
    html = run._repr_html_()

    assert "proofs passed" in html
    assert '<svg role="img" aria-label="Loss' in html
    assert "在哪里" in html
    for loaded in ("<script", "http", "src=", "href="):
        assert loaded not in html


def test_a_callback_sees_each_line_of_metrics(
    run: glmtune.Run, seen: list[Mapping[str, Any]]
) -> None:
    recorded = [line for line in run.metrics if line["step"]]

    assert [line["step"] for line in seen if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in seen if "eval_loss" in line] == [2, 4, 6]
    assert seen == recorded
    assert run.eval_loss in [line.get("eval_loss") for line in seen]


def test_the_model_of_a_run_answers_predicts_and_is_merged(run: glmtune.Run) -> None:
    reply = run.chat("广州在哪里", temperature=0, max_new_tokens=6)
    again = run.chat("广州在哪里", temperature=0, max_new_tokens=6)
    lines = run.predict(ROWS, max_new_tokens=6)

    assert isinstance(reply.text, str)
    assert str(reply) == reply.text == again.text == lines[0]["answer"]
    assert [line["reference"] for line in lines] == [row["output"] for row in ROWS]
    assert run.report() == run.folder / "report.html"
    merged = run.merge("merged", prove=False)
    with pytest.raises(CheckpointError, match="is a complete model, so there is nothing to merge"):
        glmtune.merge(merged.folder, "again")


def test_predictions_can_be_written_to_a_file_that_is_not_lost(run: glmtune.Run) -> None:
    lines = run.predict(ROWS[:2], output="answers.jsonl", max_new_tokens=2)

    assert len(Path("answers.jsonl").read_text(encoding="utf-8").splitlines()) == len(lines) == 2
    with pytest.raises(OutputError, match="exists already"):
        run.predict(ROWS[:2], output="answers.jsonl")


def test_answers_are_scored_against_those_of_the_rows(run: glmtune.Run) -> None:
    result = run.evaluate(ROWS, metrics=["exact"], with_base=True, max_new_tokens=6)

    answers = [line["answer"] for line in run.predict(ROWS, max_new_tokens=6)]
    right = sum(answer == row["output"] for answer, row in zip(answers, ROWS, strict=True))
    assert result.scores["exact"].value == pytest.approx(100 * right / len(ROWS))
    assert result.base is not None
    assert not list(run.folder.glob("scores*"))


def test_a_callback_ends_a_run_and_the_same_rows_resume_it(
    place: Path, tiny_model_dir: Path
) -> None:
    keys = {**QUICK, "max_steps": 4, "dir": "stopped"}

    stopped = glmtune.fine_tune(
        tiny_model_dir, ROWS, callbacks=[lambda values: values["step"] == 2], **keys
    )
    assert stopped.is_finished
    assert stopped.metrics[-1]["step"] == 2
    # Equal rows of another object are the same file, so the checkpoint is theirs too.
    resumed = glmtune.fine_tune(tiny_model_dir, copy.deepcopy(ROWS), resume=True, **keys)

    assert [line["step"] for line in resumed.metrics] == [1, 2, 3, 4]
    with pytest.raises(CheckpointError, match="training data"):
        glmtune.fine_tune(tiny_model_dir, ROWS[:4], resume=True, **keys)


def test_a_loss_of_ones_own_is_minimized(place: Path, tiny_model_dir: Path) -> None:
    calls: list[int] = []

    def half(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return cross_entropy_sum(logits, targets) / 2

    own = glmtune.fine_tune(tiny_model_dir, ROWS, loss=half, max_steps=1, dir="own", **QUICK)
    usual = glmtune.fine_tune(tiny_model_dir, ROWS, max_steps=1, dir="usual", **QUICK)

    assert calls
    assert own.loss is not None
    assert usual.loss is not None
    assert own.loss == pytest.approx(usual.loss / 2)


def test_the_report_shows_a_row_of_the_task_where_the_first_step_learned_a_general_one(
    place: Path, tiny_model_dir: Path
) -> None:
    general = [{"instruction": f"第{number}问", "output": "好"} for number in range(40)]
    Path("general.json").write_text(json.dumps(general), encoding="utf-8")
    one_row = {"per_device_train_batch_size": 1, "max_steps": 1}

    run = glmtune.fine_tune(
        tiny_model_dir, ROWS, replay={"path": "general.json", "ratio": 8}, dir="replayed",
        **(QUICK | one_row),
    )  # fmt: skip

    assert run.metrics[0]["replayed_rows"] == 1  # or the test shows nothing
    example = run.record.facts.example
    assert example is not None
    assert str(run.record.value("data.train")[0]) in example.place


def test_a_loss_of_ones_own_is_refused_where_a_preference_has_one(place: Path) -> None:
    with pytest.raises(RecipeError, match="has a loss of its own, preference"):
        glmtune.fine_tune(
            "nano", ROWS, preference={"stage": "dpo"}, loss=cross_entropy_sum, dir="x"
        )


def test_lint_and_plan_read_rows_in_memory(place: Path, tiny_model_dir: Path) -> None:
    report = glmtune.lint([*ROWS, ROWS[0], {"instruction": "空", "output": ""}])
    plan = glmtune.plan(tiny_model_dir, ROWS, max_length=64, dtype="float32")

    assert {finding.check for finding in report.findings} >= {"duplicate", "empty-answer"}
    assert report.num_rows == 7
    assert plan.workload.num_rows == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature=-1: expected a number from 0"),
        ({"top_k": 2.5}, r"top_k=2\.5: expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens=True: expected a whole number"),
        ({"temprature": 1}, "temprature=1: is not an option here"),
        ({"layout": "chatml"}, "layout='chatml': expected one of official"),
        ({"dtype": "fp16"}, "dtype='fp16': expected one of auto"),
        ({"compute": "int4"}, "compute='int4': expected one of int8, fp8, or None"),
    ],
)
def test_an_option_out_of_range_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        glmtune.load("there-is-no-such-folder", **options)


def test_resuming_needs_a_folder_and_a_folder_needs_a_run(place: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="resume=True needs the folder"):
        glmtune.fine_tune("nano", ROWS, resume=True)
    with pytest.raises(OutputError, match="not the folder of a run"):
        glmtune.Run.open(tmp_path)


def test_a_notebook_shows_the_message_of_an_error_without_a_traceback() -> None:
    error = RecipeError("r is -1")

    assert error._render_traceback_() == ["RecipeError: r is -1"]


def test_noise_is_off_only_while_a_function_runs() -> None:
    level = logging.getLogger("bitsandbytes").level
    with quiet_libraries():
        warnings.warn("a library deprecates another", FutureWarning, stacklevel=1)  # or an error
        assert not logging.getLogger("bitsandbytes").isEnabledFor(logging.WARNING)

    assert logging.getLogger("bitsandbytes").level == level
    with pytest.raises(FutureWarning, match="outside"):
        warnings.warn("outside", FutureWarning, stacklevel=1)
