"""Runs side by side: only what differs, no value that was not measured, no damaged file unnamed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.data.store import EncodeReport
from glmtune.errors import OutputError
from glmtune.prove.answers import Answer, Prompt, Sample
from glmtune.prove.compare import Comparison, compare, write_page
from glmtune.prove.proof import ALIVE, STOPS, Proof
from glmtune.prove.report.facts import ReportFacts, write_facts
from glmtune.recipe.reading import build_recipe
from glmtune.use.evaluate.results import Evaluation, Score

EVIL = "<script>document.title='owned'</script>"
SCORE = Score(value=87.3, low=80.1, high=92.0, num_rows=102)
MakeRun = Callable[..., Path]


def sample(answer: str) -> Sample:
    prompt = Prompt((1,), "[gMASK]sop<|user|> 你好<|assistant|>", "你好！")
    return Sample(prompt, Answer("嗯", 1, True), Answer(answer, 2, True))


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write the folder of a run of 4 steps."""

    def make(name: str, *, keys: dict[str, Any] | None = None, **facts: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        tree = {
            "model": {"name_or_path": "/home/me/nano"},
            "data": {"train": "rows.json"},
            "output": {"dir": str(folder)},
        }
        recipe = build_recipe(tree, [f"{key}={value}" for key, value in (keys or {}).items()])
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        lines = [
            {"step": step, "loss": 4 / step, "epoch": step / 2, "tokens_per_second": 100.0}
            for step in range(1, 5)
        ]
        lines.append({"step": 4, "eval_loss": 1.5})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
        known: dict[str, Any] = {
            "is_finished": True, "seconds": 65, "data_fingerprint": "a" * 64, "num_train_rows": 10,
            "template_fingerprint": "c" * 64, "machine": {"processor": "Z80"}, "versions": {},
            "data": EncodeReport(10, 10, num_tokens=200), "samples": (sample(f"{name}好"),),
            "proofs": (Proof(ALIVE, "passed"), Proof(STOPS, "failed")),
        }  # fmt: skip
        write_facts(folder, ReportFacts(**(known | facts)), recipe.to_yaml())
        return folder

    return make


def table(comparison: Comparison, title: str) -> dict[str, tuple[str, ...]]:
    return {row.label: row.values for row in comparison.tables.get(title, ())}


def test_only_the_keys_that_differ_are_shown_and_the_output_folder_is_none(
    make_run: MakeRun,
) -> None:
    runs = [make_run("a"), make_run("b", keys={"adapter.r": 16, "training.seed": 1})]

    found = compare(runs)

    assert found.names == ("a", "b")
    assert table(found, "recipe") == {"adapter.r": ("8", "16"), "training.seed": ("42", "1")}
    assert table(compare([runs[0], make_run("c")]), "recipe") == {}


def test_results_cost_and_data_are_those_of_the_files(make_run: MakeRun) -> None:
    found = compare([make_run("a"), make_run("b", seconds=3600, data_fingerprint="b" * 64)])

    assert table(found, "results") == {
        "training loss": ("1", "1"),
        "held-out loss": ("1.5", "1.5"),
        "proofs": (f"1 of 2 passed; failed: {STOPS}",) * 2,
    }
    cost = table(found, "cost")
    assert cost["time"] == ("1 min 5 s", "1 h 0 min")
    assert cost["tokens, about"] == ("400", "400")  # 20 a row, 10 rows, 2 epochs
    prints = table(found, "data")["fingerprint of the training data"]
    assert prints == ("a" * 12, "b" * 12)
    assert "The held-out rows differ, so held-out losses are not comparable." in found.notes


def test_answers_to_the_same_prompt_stand_beside_that_of_the_base(make_run: MakeRun) -> None:
    other = Sample(Prompt((2,), "其他", ""), Answer("x", 1, True), Answer("y", 1, True))

    found = compare([make_run("a"), make_run("b", samples=(other, sample("早")))])

    [shared] = found.answers
    assert shared.prompt == "你好"
    assert [(name, answer.text) for name, answer in shared.answers] == [
        ("base", "嗯"), ("a", "a好"), ("b", "早"),
    ]  # fmt: skip


def test_scores_are_shown_with_their_intervals(make_run: MakeRun) -> None:
    first, second = make_run("a"), make_run("b")
    result = Evaluation(
        task="answers", model="m", data=("/home/me/test.json",), num_rows=9, scores={"exact": SCORE}
    )
    result.write(first / "scores.json")
    (second / "scores.json").write_text("{", encoding="utf-8")

    found = compare([first, second])

    assert table(found, "scores") == {
        "exact on test.json": ("87.3 (80.1 to 92, 102 rows)", "-"),
    }
    assert any("b: scores.json" in note for note in found.notes)


def test_a_run_of_another_version_or_with_damaged_files_is_read_as_far_as_it_goes(
    make_run: MakeRun,
) -> None:
    sound, later, bare = make_run("a"), make_run("b"), make_run("c")
    recipe = later / "recipe.yaml"
    recipe.write_text(f"{recipe.read_text('utf-8')}future:\n  key: 1\n", encoding="utf-8")
    (bare / "report.json").write_text('{"recipe_sha256": ', encoding="utf-8")
    (bare / "metrics.jsonl").unlink()

    found = compare([sound, later, bare])

    assert table(found, "recipe") == {"future.key": ("-", "1", "-")}
    assert table(found, "results")["training loss"] == ("1", "1", "-")
    notes = "\n".join(found.notes)
    assert "b: The report.json in the folder belongs to a run with another recipe." in notes
    assert "c: report.json: expected the JSON that `glmtune train` wrote" in notes
    assert "c: It has no metrics." in notes


@pytest.mark.parametrize("chosen", [(), ("a",), ("a", "a"), ("a", "none")])
def test_what_cannot_be_compared_is_an_error(
    make_run: MakeRun, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    make_run("a")

    with pytest.raises(OutputError, match=r"at least two different runs|not the folder of a run"):
        compare([tmp_path / name for name in chosen])


def test_folders_of_one_name_are_told_apart(make_run: MakeRun) -> None:
    assert compare([make_run("x/run"), make_run("y/run")]).names == ("x/run", "y/run")


def test_a_run_has_one_color_in_all_charts(make_run: MakeRun) -> None:
    first, second = make_run("a"), make_run("b")
    lines = [{"step": step, "loss": 1.0 * step} for step in (1, 2)]
    (first / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    charts = {chart.title: chart.curves for chart in compare([first, second]).charts}

    assert [(curve.name, curve.color) for curve in charts["Training loss"]] == [("a", 0), ("b", 1)]
    speed = charts["Speed, tokens per second"]
    assert [(curve.name, curve.color) for curve in speed] == [("b", 1)]


def test_the_command_prints_a_table_and_writes_a_harmless_page(
    make_run: MakeRun, tmp_path: Path
) -> None:
    runs = [make_run("a", samples=(sample(EVIL),)), make_run("b", keys={"adapter.r": 16})]
    page = tmp_path / "pages.html"

    printed = CliRunner().invoke(app, ["compare", *map(str, runs), "-o", str(page)])

    assert printed.exit_code == 0, printed.output
    assert "adapter.r" in printed.output
    assert f"Curves and answers: {page}" in printed.output.replace("\n", "")
    html = page.read_text(encoding="utf-8")
    assert html.count("<script") == 1
    assert "&lt;script&gt;document.title" in html
    assert "/home/me" not in html
    assert str(tmp_path) not in html
    as_json = CliRunner().invoke(app, ["compare", *map(str, runs), "-o", str(page), "--json"])
    assert json.loads(as_json.stdout)["recipe"] == {"adapter.r": {"a": "8", "b": "16"}}


def test_a_file_that_is_no_comparison_is_not_replaced(make_run: MakeRun, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    page.write_text("my own notes", encoding="utf-8")

    with pytest.raises(OutputError, match="is not a page that `glmtune compare` wrote"):
        write_page(compare([make_run("a"), make_run("b")]), page)
    assert page.read_text(encoding="utf-8") == "my own notes"
