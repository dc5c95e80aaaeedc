"""Recipes and rows over the API: what is shown, saved and refused."""

import pytest
from tests.cli.board.conftest import Board

from glmtune.recipe.reading import load_recipe

VALUES = {"model.name_or_path": "nano", "data.train": ["rows.jsonl"], "output.dir": "out/a"}


def test_a_filled_form_is_shown_as_yaml_and_as_a_command(board: Board) -> None:
    found = board.ask("check", {"values": VALUES, "overrides": ["training.max_steps=3"]})

    assert found["problems"] == []
    assert found["values"] == VALUES | {"training.max_steps": 3}
    assert 'train: ["rows.jsonl"]' in found["yaml"]
    assert found["command"].startswith("glmtune train chatglm3-lora model.name_or_path=nano ")
    wrong = board.ask("check", {"values": VALUES | {"training.learning_rate": -1, "adapter.r": 0}})
    assert len(wrong["problems"]) == 2
    assert "adapter.r" in wrong["problems"][0]


def test_a_recipe_is_saved_read_and_never_replaced_unasked(board: Board) -> None:
    assert board.ask("save", {"path": "mine.yaml", "values": VALUES}) == {"path": "mine.yaml"}
    file = board.folder / "mine.yaml"
    assert load_recipe(file).model.name_or_path == "nano"
    assert board.ask("read", {"path": "mine.yaml"})["values"] == VALUES
    assert board.ask("read", {"text": file.read_text()})["values"] == VALUES
    status, message = board.refusal("save", {"path": "mine.yaml", "values": VALUES})
    assert (status, "exists already" in message) == (409, True)
    again = {"path": "mine.yaml", "values": VALUES | {"adapter.r": 4}, "overwrite": True}
    board.ask("save", again)
    assert board.ask("read", {"path": "mine.yaml"})["values"]["adapter.r"] == 4


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("save", {"path": "mine.txt", "values": VALUES}, 400),
        ("save", {"path": "../mine.yaml", "values": VALUES}, 403),
        ("save", {"path": "none/mine.yaml", "values": VALUES}, 422),
        ("save", {"path": "mine.yaml", "values": {}}, 422),
        ("read", {"name": "../../x"}, 400),
        ("read", {"path": "../x.yaml"}, 403),
        ("read", {"path": "rows.jsonl"}, 422),
        ("read", {"text": "a: ["}, 422),
        ("read", {"text": "3"}, 422),
        ("start", {"values": VALUES | {"output.dir": "../out"}}, 403),
        ("start", {"values": VALUES | {"output.dir": "."}}, 422),
        ("start", {"values": VALUES | {"output.dir": "rows.jsonl"}}, 422),
        ("start", {"values": {"output.dir": "out"}}, 422),
        ("look", {"path": "none.json"}, 404),
        ("look", {"path": "../rows.jsonl"}, 403),
        ("row", {"path": "rows.jsonl"}, 400),
        ("row", {"path": "rows.jsonl", "model": "nano", "first": 999}, 422),
        ("lint", {"path": "none.json"}, 404),
        ("fix", {"path": "rows.jsonl", "output": "../clean.jsonl"}, 403),
        ("fix", {"path": "rows.jsonl", "output": ".clean.jsonl"}, 400),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    board: Board, name: str, body: dict, status: int
) -> None:
    found, message = board.refusal(name, body)

    assert found == status, message
    assert "Traceback" not in message
    assert not (board.folder / ".glmtune-board").exists()
    assert sorted(path.name for path in board.folder.iterdir()) == ["rows.jsonl"]


def test_rows_are_shown_page_by_page_and_as_tokens(board: Board) -> None:
    first = board.ask("look", {"path": "rows.jsonl"})
    second = board.ask("look", {"path": "rows.jsonl", "first": 21})

    assert (len(first["rows"]), first["has_more"]) == (20, True)
    assert (len(second["rows"]), second["has_more"]) == (4, False)
    assert second["rows"][0] == {
        "line": 21, "is_row": True,
        "text": '{"instruction": "20 加 20 等于几？", "input": "", "output": "等于 40。"}',
    }  # fmt: skip
    [seen] = board.ask("row", {"path": "rows.jsonl", "model": "nano", "first": 21})
    learned = "".join(piece["text"] for piece in seen["pieces"] if piece["learned"])
    assert "等于 40。" in learned
    assert "20 加 20" not in learned
    assert sum(len(piece["ids"]) for piece in seen["pieces"]) == seen["tokens"]
    (board.folder / "rows.jsonl").write_text('{"instruction": "a\\ud800", "output": 1}\n{broken\n')
    rows = board.ask("look", {"path": "rows.jsonl"})["rows"]
    assert [row["is_row"] for row in rows] == [True, False]
