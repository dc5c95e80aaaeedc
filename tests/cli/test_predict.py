"""`glmtune predict` answers every row as chat would, and loses nothing that was answered."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from glmtune.cli.main import app
from glmtune.errors import CheckpointError, DataError, OutputError, RecipeError, TemplateError
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.select import template_for
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session
from glmtune.use.predict import AnswerFile

# What `taught_model_dir` has learned by heart.
QUESTION, ANSWER = "你叫什么名字？", "我是小助手。😀 鑫！"
AGAIN, AGAIN_ANSWER = "再说一次", "小助手。"
WEATHER = "北京天气怎么样？"
ROWS: list[dict[str, Any]] = [
    {"id": "a7", "instruction": QUESTION, "output": "我是小调。"},
    {"instruction": "今天的", "input": WEATHER, "output": "晴。"},
    {"instruction": AGAIN, "output": AGAIN_ANSWER, "history": [[QUESTION, ANSWER]]},
    {"instruction": "写一首诗", "output": ""},
]


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=False)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_every_row_is_answered_as_chat_answers_it_in_the_order_of_the_rows(
    taught_model_dir: Path, rows: Path, output: Path
) -> None:
    result = run(rows, "--model", taught_model_dir, "-o", output, "--max-new-tokens", 40)

    first, second, third, fourth = read(output)
    assert first == {
        "row": 1, "file": str(rows), "line": 1, "id": "a7", "prompt": QUESTION, "answer": ANSWER,
        "ended": True, "tokens": first["tokens"], "reference": "我是小调。",
    }  # fmt: skip
    sampling = Sampling(temperature=0, max_new_tokens=40)
    session = open_session(str(taught_model_dir), sampling=sampling)
    reply = session.reply(f"今天的\n{WEATHER}")
    assert (second["answer"], second["tokens"]) == (reply.text, reply.num_tokens)
    assert second["ended"] == (reply.ended_by == "stop")
    assert (third["prompt"], third["answer"]) == (AGAIN, AGAIN_ANSWER)
    assert third["answer"] != open_session(str(taught_model_dir), sampling=sampling).reply(AGAIN)
    assert "reference" not in fourth
    ended = sum(line["ended"] for line in read(output))
    assert f"{output}: 4 answers, {ended} of them ended by themselves" in result.stdout
    assert not output.with_name("answers.jsonl.partial").exists()


def test_the_batch_changes_nothing(taught_model_dir: Path, rows: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{size}.jsonl" for size in (1, 2, 32)]
    for file in files:
        run(rows, "--model", taught_model_dir, "-o", file, "--batch-size", file.stem,
            "--max-new-tokens", 30, "--temperature", 9, "--top-p", 1, "--seed", 3)  # fmt: skip

    assert read(files[0]) == read(files[1]) == read(files[2])
    assert read(files[0])[0]["answer"] != ANSWER  # or nothing was drawn


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.txt", f"{QUESTION}\n\n{AGAIN}\n"),
        ("prompts.jsonl", f'{{"prompt": "{QUESTION}"}}\n{{"prompt": "{AGAIN}"}}\n'),
        ("prompts.csv", f"instruction\n{QUESTION}\n{AGAIN}\n"),
        (
            "messages.json",
            json.dumps([{"messages": [{"role": "user", "content": q}]} for q in (QUESTION, AGAIN)]),
        ),
    ],
)
def test_prompts_need_no_answers(
    taught_model_dir: Path, tmp_path: Path, output: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")

    run(tmp_path / name, "--model", taught_model_dir, "-o", output, "--max-new-tokens", 40)

    first, second = read(output)
    assert (first["prompt"], first["answer"]) == (QUESTION, ANSWER)
    assert second["prompt"] == AGAIN
    assert "reference" not in first


def test_an_adapter_answers_in_the_layout_it_was_trained_in(
    taught_model_dir: Path, rows: Path, tmp_path: Path, output: Path
) -> None:
    import torch

    model = lora.attach(load_model(taught_model_dir), LoraSection())
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.fill_(0.05)
    template = template_for(load_tokenizer(taught_model_dir), "tutorial")
    lora.save(model, tmp_path / "adapter", template)

    run(rows, "--model", tmp_path / "adapter", "-o", output, "--max-new-tokens", 20)

    sampling = Sampling(temperature=0, max_new_tokens=20)
    tuned = open_session(str(taught_model_dir), tmp_path / "adapter", sampling=sampling)
    assert tuned.template.description["layout"] == "tutorial"
    assert read(output)[0]["answer"] == tuned.reply(QUESTION).text
    with pytest.raises(TemplateError, match="--any-template"):
        run(rows, "--model", tmp_path / "adapter", "-o", output, "--overwrite", "--layout",
            "official")  # fmt: skip


# ---- what is there is not lost -------------------------------------------------------------


def test_answers_that_are_there_are_not_overwritten_unasked(
    taught_model_dir: Path, rows: Path, output: Path
) -> None:
    output.write_text("precious")

    with pytest.raises(OutputError, match=r"answers\.jsonl: exists already.*--overwrite"):
        run(rows, "--model", taught_model_dir, "-o", output)
    assert output.read_text() == "precious"

    run(rows, "--model", taught_model_dir, "-o", output, "--overwrite", "--max-new-tokens", 5)
    assert len(read(output)) == 4


@pytest.fixture
def interrupted(taught_model_dir: Path, rows: Path, output: Path) -> Path:
    """A partial file with two answers and the beginning of a third."""
    run(rows, "--model", taught_model_dir, "-o", output, "--max-new-tokens", 5)
    lines = read(output)
    partial = output.with_name("answers.jsonl.partial")

    def until_it_is_stopped() -> Iterator[dict[str, Any]]:
        yield {**lines[2], "answer": "kept, not computed again"}
        yield lines[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AnswerFile(output, identity_of(taught_model_dir, rows, output)).write(until_it_is_stopped())
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"row": 2, "answer": "half a li')
    output.unlink()
    return partial


def identity_of(model: Path, rows: Path, output: Path) -> dict[str, Any]:
    """What a run says of itself in its partial file, found by letting one be stopped."""
    from glmtune.recipe.sections import DataSection
    from glmtune.use.open import open_template
    from glmtune.use.predict import identify, read_questions

    _, folder, template = open_template(str(model))
    questions = read_questions(DataSection(train=(str(rows),)), template)
    sampling = Sampling(max_new_tokens=5, temperature=0.0)
    return identify(str(model), folder, template, questions, sampling, "auto")


def test_an_interrupted_run_continues_where_it_was(
    taught_model_dir: Path, rows: Path, output: Path, interrupted: Path
) -> None:
    arguments = (rows, "--model", taught_model_dir, "-o", output, "--max-new-tokens", 5)
    with pytest.raises(OutputError, match=r"partial: holds the answers of an interrupted run"):
        run(*arguments)

    run(*arguments, "--resume")

    lines = read(output)
    assert [line["row"] for line in lines] == [1, 2, 3, 4]
    assert lines[2]["answer"] == "kept, not computed again"
    assert "half a li" not in output.read_text(encoding="utf-8")
    assert not interrupted.exists()


def test_answers_to_other_questions_are_not_continued(
    taught_model_dir: Path, rows: Path, output: Path, interrupted: Path
) -> None:
    arguments = ("--model", taught_model_dir, "-o", output, "--resume", "--max-new-tokens")
    with pytest.raises(OutputError, match="another run; sampling changed"):
        run(rows, *arguments, 6)

    write(rows, [*ROWS, {"instruction": "还有呢", "output": "没有了。"}])
    with pytest.raises(OutputError, match="another run; prompts changed"):
        run(rows, *arguments, 5)

    interrupted.write_text("[1, 2]\n[3]\n")
    with pytest.raises(OutputError, match="is damaged, or was not written by glmtune predict"):
        run(rows, *arguments, 5)


def test_resume_starts_from_the_beginning_where_there_is_nothing_to_continue(
    taught_model_dir: Path, rows: Path, output: Path
) -> None:
    run(rows, "--model", taught_model_dir, "-o", output, "--resume", "--max-new-tokens", 5)

    assert len(read(output)) == 4


def test_a_full_disk_keeps_what_was_answered(output: Path) -> None:
    """A limit on the size of files is the disk that a test can fill."""

    def answers() -> Iterator[dict[str, Any]]:
        for row in range(1, 100):
            yield {"row": row, "answer": "x" * 100}

    file = AnswerFile(output, {"model": "m"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"answers\.jsonl\.partial: could not be written"):
            file.write(answers())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    again = AnswerFile(output, {"model": "m"})
    again.resume()
    assert 20 < len(again.lines) < 30
    assert not output.exists()


@pytest.mark.slow
def test_ctrl_c_shows_how_to_continue(taught_model_dir: Path, tmp_path: Path, output: Path) -> None:
    rows = write(tmp_path / "many.jsonl", [{"prompt": f"{n}个"} for n in range(300)])
    command = [sys.executable, "-m", "glmtune", "predict", str(rows), "--model",
               str(taught_model_dir), "-o", str(output), "--batch-size", "1"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    partial = output.with_name("answers.jsonl.partial")
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    num_kept = partial.read_bytes().count(b"\n") - 1
    assert f"Stopped: {num_kept} of 300 rows are answered" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr


# ---- what cannot be answered ---------------------------------------------------------------


def test_errors_are_reported_before_the_model_is_loaded(
    taught_model_dir: Path, tmp_path: Path, output: Path
) -> None:
    model = tmp_path / "model without weights"
    model.mkdir()
    for path in taught_model_dir.iterdir():
        if path.suffix != ".safetensors":
            os.link(path, model / path.name)
    rest = ("--model", model, "-o", output)

    empty = tmp_path / "empty.jsonl"
    empty.touch()
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    cases: list[tuple[str, str]] = [
        (str(tmp_path / "nowhere.jsonl"), "no such file"),
        (str(empty), "the file is empty"),
        (str(blank), "there is no row to answer"),
        (str(write(tmp_path / "x.jsonl", [{"frage": "q"}])), "'frage': no known format"),
        (
            str(write(tmp_path / "s.jsonl", [{"messages": [{"role": "system", "content": "x"}]}])),
            r"s\.jsonl:1: .*no turn is a question",
        ),
        (
            str(write(tmp_path / "l.jsonl", [{"prompt": "q"}, {"prompt": "长" * 600}])),
            r"l\.jsonl:2: the prompt has [\d,]+ tokens, which leaves no room .* in the 512",
        ),
    ]
    for data, message in cases:
        with pytest.raises(DataError, match=message):
            run(data, *rest)
    good = write(tmp_path / "good.jsonl", ROWS)
    with pytest.raises(RecipeError, match="--model is missing"):
        run(good, "-o", output)
    with pytest.raises(OutputError, match="there is no folder"):
        run(good, "--model", model, "-o", tmp_path / "no" / "answers.jsonl")
    with pytest.raises(OutputError, match="is a folder"):
        run(good, "--model", model, "-o", tmp_path)
    with pytest.raises(CheckpointError, match="there are no weights"):  # so it was not reached
        run(good, *rest)
    assert not output.exists()


def test_rows_that_cannot_be_used_are_left_out_when_asked(
    taught_model_dir: Path, tmp_path: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any]] = [
        {"frage": QUESTION},
        {"frage": 7},
        {"frage": "长" * 600},
        {"frage": AGAIN},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    rest = ("--model", taught_model_dir, "-o", output, "data.columns={prompt: frage}")

    with pytest.raises(DataError, match=r"rows\.jsonl:2: field 'prompt': got the number 7"):
        run(path, *rest)

    run(path, *rest, "data.bad_rows=skip", "--max-new-tokens", 40)
    assert [(line["row"], line["prompt"]) for line in read(output)] == [(1, QUESTION), (4, AGAIN)]
    assert "rows.jsonl:2" in caplog.text
    assert "rows.jsonl:3" in caplog.text
