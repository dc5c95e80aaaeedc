"""The demo's rows, its checkpoint, and the folder it owns."""

import json
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from glmtune.demo.facts import HELD_OUT, TRAIN
from glmtune.demo.folder import prepare
from glmtune.errors import OutputError
from glmtune.load import load_model, load_tokenizer


def rows(path: Path) -> list[dict[str, str]]:
    loaded: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def asked(row: dict[str, str]) -> tuple[str, str]:
    return row["instruction"], row["input"]


def test_the_rows_are_alpaca_rows_with_answers() -> None:
    for path in (TRAIN, HELD_OUT):
        for row in rows(path):
            assert set(row) <= {"instruction", "input", "output", "history"}
            assert row["instruction"]
            assert row["output"]


def test_no_held_out_question_is_learned() -> None:
    learned = {asked(row) for row in rows(TRAIN)}
    learned |= {(turn[0], "") for row in rows(TRAIN) for turn in row.get("history", [])}

    assert not learned & {asked(row) for row in rows(HELD_OUT)}


def test_every_held_out_answer_is_a_fact_that_is_learned() -> None:
    learned = {row["output"] for row in rows(TRAIN)}

    assert {row["output"] for row in rows(HELD_OUT)} <= learned


def test_no_question_is_asked_twice() -> None:
    counts = Counter(asked(row) for path in (TRAIN, HELD_OUT) for row in rows(path))

    assert [question for question, count in counts.items() if count > 1] == []


def test_the_checkpoint_has_the_originals_layout_and_is_the_same_every_time(tmp_path: Path) -> None:
    one, other = (prepare(tmp_path / name).base for name in ("a", "b"))

    assert load_model(one).config.model_type == "chatglm"
    assert load_tokenizer(one).encode("你好")
    with safe_open(one / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "transformer.embedding.word_embeddings.weight" in names
    assert "transformer.rotary_pos_emb.inv_freq" in names
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    assert weights[0] == weights[1]


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(OutputError, match=r"holds mine\.txt and no demo\.json"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_demo_replaces_the_first_and_keeps_what_is_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    prepare(folder)
    (folder / "notes.txt").write_text("mine")

    prepare(folder)

    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_of_the_demo_that_was_changed_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    train = prepare(folder).train
    train.write_text("[]")

    with pytest.raises(OutputError, match=r"train\.json changed"):
        prepare(folder)
    assert train.read_text() == "[]"
