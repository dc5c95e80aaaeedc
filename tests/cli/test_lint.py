"""`glmtune lint`: what it prints, writes and returns."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from glmtune.cli.main import app
from glmtune.errors import OutputError, RecipeError

GOOD = [
    {"instruction": "写一首诗", "output": "春天来了。"},
    {"instruction": "北京的历史", "output": "三千多年。"},
    {"instruction": "Why?", "output": "Because of the rain."},
]
REFUSAL = {"instruction": "你饿吗", "output": "作为一个人工智能语言模型，我不会饿。"}
PLACEHOLDERS = [
    {"instruction": f"{n}号是谁", "output": "我是 {{name}}"} for n in "甲乙丙丁戊己庚辛"
]


def run_lint(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["lint", *map(str, arguments)], catch_exceptions=False)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_good_rows_pass_and_skipped_checks_are_listed(tmp_path: Path) -> None:
    result = run_lint(write(tmp_path / "rows.jsonl", GOOD))

    assert result.exit_code == 0
    assert "3 rows (format alpaca)" in result.stdout
    assert "not checked: no-stop, cut-answer, length (needs a tokenizer" in result.stdout
    assert "Lengths in characters" in result.stdout
    assert "0 errors, 0 warnings, 0 notes" in result.stdout


def test_with_a_model_everything_is_checked(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", GOOD)

    result = run_lint(rows, "--model", tiny_model_dir, "--max-length", 18, "--layout", "tutorial")

    assert "not checked" not in result.stdout
    assert "Lengths in tokens" in result.stdout
    assert "data.max_length 18" in result.stdout


def test_errors_fail_and_warnings_do_so_when_strict(tmp_path: Path) -> None:
    warned = write(tmp_path / "warned.jsonl", [*GOOD, REFUSAL])
    wrong = write(tmp_path / "wrong.jsonl", [*GOOD, PLACEHOLDERS[0]])

    assert run_lint(warned).exit_code == 0
    assert run_lint(warned, "--strict").exit_code == 1
    assert run_lint(wrong).exit_code == 1


def test_a_file_on_which_training_stops_by_default_fails(tmp_path: Path) -> None:
    unreadable = write(tmp_path / "unreadable.jsonl", [*GOOD, {"instruction": "一"}])
    truncated = tmp_path / "truncated.json"
    truncated.write_text(json.dumps(GOOD)[:-5], encoding="utf-8")

    assert run_lint(unreadable).exit_code == 1
    assert run_lint(unreadable, "data.bad_rows=skip").exit_code == 0
    assert run_lint(truncated).exit_code == 1
    assert run_lint(truncated, "data.bad_rows=skip").exit_code == 1  # rows are missing


def test_a_finding_names_its_line_and_shows_its_words(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [*GOOD, PLACEHOLDERS[0]])

    printed = run_lint(rows).stdout

    assert f"{rows}:4: error: {{{{name}}}} was never filled in\n    我是 {{{{name}}}}" in printed


def test_few_findings_are_printed_and_all_are_written(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [*GOOD, *PLACEHOLDERS])

    printed = run_lint(rows, "--show", 2, "--json", tmp_path / "report.json").stdout

    assert printed.count("was never filled in") == 2
    assert "and 6 more" in printed
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [f["line"] for f in report["findings"] if f["check"] == "placeholder"] == [*range(4, 12)]


def test_json_on_stdout_is_json_alone(tmp_path: Path) -> None:
    result = run_lint(write(tmp_path / "rows.jsonl", [*GOOD, REFUSAL]), "--json", "-")

    assert json.loads(result.stdout)["warnings"] == 1
    assert "0 errors, 1 warning, 0 notes" in result.stderr


def test_fix_writes_a_copy_and_never_overwrites(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [*GOOD, GOOD[1]])
    copy = tmp_path / "clean.jsonl"

    assert "3 rows written, 1 left out" in run_lint(rows, "--fix", copy).stdout
    assert len(copy.read_text(encoding="utf-8").splitlines()) == 3
    with pytest.raises(OutputError, match="exists already"):
        run_lint(rows, "--fix", copy)
    with pytest.raises(OutputError, match="exists already"):
        run_lint(rows, "--fix", rows)
    assert len(rows.read_text(encoding="utf-8").splitlines()) == 4


def test_the_rows_and_the_limit_come_from_a_recipe(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", GOOD)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {tiny_model_dir}}}\n"
        f"data: {{train: {rows}, eval: {rows}, max_length: 300}}\noutput: {{dir: out}}\n"
    )

    result = run_lint(recipe, "data.max_length=200")

    assert result.exit_code == 1  # what is held out is learned, all of it
    assert "3 rows and 3 held out" in result.stdout
    assert "data.max_length 200" in result.stdout
    assert result.stdout.count("prompt is also learned") == 3


def test_a_second_file_is_refused_with_the_way_to_give_it(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", GOOD)

    with pytest.raises(RecipeError, match=r"data\.train=\["):
        run_lint(rows, rows)


def test_rows_with_labels_are_judged_as_training_would(tmp_path: Path) -> None:
    rows = [{**row, "label": str(index % 2)} for index, row in enumerate(GOOD)]
    kto = write(tmp_path / "kto.jsonl", rows)
    wrong = write(tmp_path / "wrong.jsonl", [*rows, {**REFUSAL, "label": "bad"}])

    found = run_lint(kto, "preference.stage=kto")
    refused = run_lint(wrong, "preference.stage=kto")

    assert "0 errors, 0 warnings" in found.stdout  # without the stage, a label of 1 is not read
    assert (refused.exit_code, run_lint(wrong).exit_code) == (1, 0)
    assert "got the text 'bad', expected true or false" in refused.stdout
