"""The demo's rows, and the folder it owns."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from glmtune.cli.demo.folder import prepare
from glmtune.cli.demo.fractions import GAUGE, GENERAL, HELD_OUT, TRAIN, to_json
from glmtune.cli.demo.fractions import rows as make_rows
from glmtune.errors import OutputError


def rows(path: Path) -> list[dict[str, str]]:
    loaded: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def asked(row: dict[str, str]) -> tuple[str, str]:
    return row["instruction"], row["input"]


def test_the_rows_are_alpaca_rows_with_answers() -> None:
    for path in (TRAIN, HELD_OUT, GENERAL, GAUGE):
        for row in rows(path):
            assert set(row) == {"instruction", "input", "output"}
            assert row["instruction"]
            assert row["output"]


def test_the_rows_are_what_the_fractions_make() -> None:
    assert TRAIN.read_text(encoding="utf-8") == to_json(make_rows(held_out=False))
    assert HELD_OUT.read_text(encoding="utf-8") == to_json(make_rows(held_out=True))


def test_every_answer_is_right_step_by_step() -> None:
    for row in [*rows(TRAIN), *rows(HELD_OUT)]:
        first, *steps = row["output"].split("，")
        a, b = map(int, first.split("/"))
        assert f"{a}/{b}" in row["instruction"]
        for step in steps:
            divisor, p, q = map(int, re.fullmatch(r"除以(\d+)得(\d+)/(\d+)", step).groups())  # type: ignore[union-attr]
            assert divisor > 1
            assert (p * divisor, q * divisor) == (a, b)
            a, b = p, q
        assert steps
        assert math.gcd(a, b) == 1


def test_no_held_out_fraction_is_learned_not_even_upside_down_or_on_the_way() -> None:
    def pairs(text: str) -> set[frozenset[str]]:
        return {frozenset(pair) for pair in re.findall(r"(\d+)/(\d+)", text)}

    learned = pairs(TRAIN.read_text(encoding="utf-8"))
    tested = set().union(*(pairs(row["instruction"]) for row in rows(HELD_OUT)))

    assert len(tested) > 50
    assert not learned & tested


def test_no_question_is_asked_twice() -> None:
    counts = Counter(asked(row) for path in (TRAIN, HELD_OUT) for row in rows(path))

    assert [question for question, count in counts.items() if count > 1] == []


def test_what_shows_forgetting_is_not_repeated_and_no_general_row_is_about_fractions() -> None:
    learned, asked_of_it = rows(GENERAL), rows(GAUGE)

    for key in ("instruction", "output"):
        assert not {row[key] for row in learned} & {row[key] for row in asked_of_it}
    texts = json.dumps([learned, asked_of_it], ensure_ascii=False)
    assert not re.search(r"\d/\d|约分|分数|分子|分母", texts)


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


def test_a_run_of_the_users_own_in_the_demos_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    adapter = prepare(folder).adapter
    adapter.mkdir()
    (adapter / "recipe.yaml").write_text("another run")
    (adapter / "adapter_model.safetensors").write_text("its weights")

    with pytest.raises(OutputError, match=r"adapter/recipe\.yaml changed"):
        prepare(folder)
    assert (adapter / "adapter_model.safetensors").read_text() == "its weights"
