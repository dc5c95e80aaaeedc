"""`glmtune evaluate`: what it measures, keeps and refuses."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from glmtune.cli.main import app
from glmtune.errors import DataError, GlmtuneError, OutputError, RecipeError
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.select import template_for
from glmtune.use.evaluate import run as running
from glmtune.use.evaluate.results import Evaluation, read_evaluation

# What `taught_model_dir` has learned by heart.
QUESTION, ANSWER = "你叫什么名字？", "我是小助手。😀 鑫！"
AGAIN, AGAIN_ANSWER = "再说一次", "小助手。"
ROWS: list[dict[str, Any]] = [
    {"instruction": QUESTION, "output": ANSWER},
    {"instruction": AGAIN, "output": AGAIN_ANSWER, "history": [[QUESTION, ANSWER]]},
    {"instruction": "北京天气怎么样？", "output": "晴。"},
]


def run(*arguments: str | Path | int) -> Result:
    words = ["evaluate", *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False, env={"COLUMNS": "200"})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(text + "\n", encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


@pytest.fixture(scope="module")
def spoiled_adapter(taught_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter under which the taught model no longer knows its lessons."""
    model = lora.attach(load_model(taught_model_dir), LoraSection())
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.fill_(0.5)
    folder = tmp_path_factory.mktemp("spoiled")
    lora.save(model, folder, template_for(load_tokenizer(taught_model_dir), "official"))
    return folder


def no_model(*_: Any, **__: Any) -> Any:
    raise AssertionError("a model was loaded although every answer is kept")


def test_answers_are_scored_kept_and_scored_again_without_the_model(
    taught_model_dir: Path, rows: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run(taught_model_dir, rows, "-o", output, "--max-new-tokens", 40)

    result = read_evaluation(output)
    exact = result.scores["exact"]
    assert (round(exact.value, 2), exact.num_rows, result.num_rows) == (66.67, 3, 3)
    assert exact.low < 30
    assert exact.high > 90
    assert list(result.scores) == ["exact", "rouge-l-char", "stop", "length"]
    assert (result.task, result.base, result.answers) == ("answers", None, "result.answers.jsonl")
    assert "66.67" in shown.output
    kept = output.with_name("result.answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 4
    assert ANSWER in "".join(kept)

    with pytest.raises(OutputError, match=r"result\.json: exists already.*--overwrite"):
        run(taught_model_dir, rows, "-o", output)
    monkeypatch.setattr(running, "load_tuned", no_model)
    again = run(
        taught_model_dir, rows, "-o", output, "--max-new-tokens", 40, "--overwrite", "-m",
        "contains,number", "--json",
    )  # fmt: skip
    printed = Evaluation.model_validate_json(again.stdout)
    assert list(printed.scores) == ["contains", "stop", "length"]  # no row has a number
    assert printed == read_evaluation(output)


def test_an_interrupted_evaluation_continues_with_the_missing_rows(
    taught_model_dir: Path, rows: Path, output: Path
) -> None:
    run(taught_model_dir, rows, "-o", output, "--max-new-tokens", 40)
    kept = output.with_name("result.answers.jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines()
    changed = [line.replace(ANSWER, "kept") for line in lines[:3]]
    kept.write_text("\n".join(changed) + '\n{"row": 9, "ans', encoding="utf-8")
    output.unlink()

    run(taught_model_dir, rows, "-o", output, "--max-new-tokens", 40)

    now = kept.read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["row"] for line in now[1:]) == [1, 2, 3]
    assert now[:3] == changed[:3]  # they were not answered again

    output.unlink()
    with pytest.raises(OutputError, match=r"answers of another evaluation; sampling changed"):
        run(taught_model_dir, rows, "-o", output, "--max-new-tokens", 5)
    kept.write_text("precious\n", encoding="utf-8")
    with pytest.raises(OutputError, match=r"answers\.jsonl:1: is not a line that glmtune evaluate"):
        run(taught_model_dir, rows, "-o", output)
    assert kept.read_text(encoding="utf-8") == "precious\n"


def test_base_and_tuned_model_are_compared_on_the_same_rows(
    taught_model_dir: Path, spoiled_adapter: Path, tmp_path: Path, output: Path
) -> None:
    rows = write(tmp_path / "many.jsonl", ROWS[:2] * 10)

    shown = run(spoiled_adapter, rows, "-o", output, "--with-base", "--max-new-tokens", 24)

    result = read_evaluation(output)
    assert result.base is not None
    assert (result.base["exact"].value, result.scores["exact"].value) == (100, 0)
    found = result.differences["exact"]
    assert (found.value, found.test, found.verdict) == (-100, "mcnemar", "worse")
    assert found.p < 1e-4
    assert "worse, p < 0.001" in shown.output
    assert result.differences["length"].verdict is None
    assert output.with_name("result.base-answers.jsonl").is_file()
    with pytest.raises(OutputError, match="has no adapter"):
        run(taught_model_dir, rows, "-o", tmp_path / "x.json", "--with-base")


def test_options_are_chosen_by_likelihood_and_counted_by_subject(
    taught_model_dir: Path, tmp_path: Path, output: Path
) -> None:
    folder = tmp_path / "ceval"
    for split, number in (("dev", 1), ("val", 3)):
        (folder / split).mkdir(parents=True)
        for subject in ("accountant", "logic"):
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["id", "question", "A", "B", "C", "D", "answer"])
                table.writerows([i, f"第{i}题", 1, 2, 3, 4, "ABCD"[i]] for i in range(number))

    shown = run(taught_model_dir, folder, "-o", output, "--task", "choice", "--shots", 1)

    result = read_evaluation(output)
    assert (result.num_rows, result.settings["split"], result.settings["shots"]) == (6, "val", 1)
    assert set(result.by_subject) == {"accountant", "logic"}
    assert result.scores["accuracy"].num_rows == 6
    assert "accountant" in shown.output
    lines = [
        json.loads(line)
        for line in output.with_name("result.answers.jsonl").read_text("utf-8").splitlines()[1:]
    ]
    assert all(set(line["letters"]) == set("ABCD") for line in lines)
    assert all(line["answer"] == max(line["letters"], key=line["letters"].get) for line in lines)


def test_the_perplexity_of_texts_is_the_loss_of_the_model(
    taught_model_dir: Path, tmp_path: Path, output: Path
) -> None:
    texts = ["今天的天气很好，我们去公园散步吧。", "春天来了，花儿开了。"]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")

    run(taught_model_dir, tmp_path / "texts.txt", "-o", output, "--task", "perplexity")

    tokenizer, model = load_tokenizer(taught_model_dir), load_model(taught_model_dir)
    nats = tokens = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        labels = ids.clone()
        labels[:, :2] = -100
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=labels).loss)
        nats += loss * (ids.size(1) - 2)
        tokens += ids.size(1) - 2
    scores = read_evaluation(output).scores
    assert scores["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    characters = sum(map(len, texts))
    assert scores["bits-per-character"].value == pytest.approx(nats / math.log(2) / characters)

    run(
        taught_model_dir, tmp_path / "texts.txt", "-o", output, "--task", "perplexity",
        "data.max_length=18", "--overwrite",
    )  # fmt: skip
    assert read_evaluation(output).scores["perplexity"].value != scores["perplexity"].value


def test_what_cannot_be_evaluated_is_refused_before_a_model_is_loaded(
    taught_model_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "load_tuned", no_model)
    asked = write(tmp_path / "asked.jsonl", [{"prompt": QUESTION}])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {train: rows.jsonl}\noutput: {dir: out}\n", encoding="utf-8")
    wrong: list[tuple[type[GlmtuneError], str, tuple[str | Path, ...]]] = [
        (DataError, "is not a metric", (rows, "-m", "rouge")),
        (DataError, "no such file", (tmp_path / "none.json",)),
        (DataError, "no row has an answer to compare with", (asked,)),
        (RecipeError, "names no data", ("data.columns={}",)),
        (RecipeError, "has no data.eval", (recipe,)),
        (RecipeError, "Give it alone", (recipe, rows)),
        (OutputError, "there is no folder", (rows, "-o", tmp_path / "no" / "x.json")),
        (OutputError, "is a folder", (rows, "-o", tmp_path)),
        (DataError, "is missing", (rows, "--task", "choice")),
        (DataError, "no 'text' in it", (rows, "--task", "perplexity")),
        (DataError, "expected the URL of an OpenAI-compatible API", (rows, "--judge", "x")),
    ]
    for kind, message, words in wrong:
        more = () if "-o" in words else ("-o", tmp_path / "result.json")
        with pytest.raises(kind, match=message):
            run(taught_model_dir, *words, *more)
    assert not list(tmp_path.glob("result*"))
