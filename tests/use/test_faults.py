"""Every write of `predict` fails once: no answer is lost, and the next command ends in the same."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults import ERRORS, KILL, check_sentence, fail_everywhere

from glmtune.errors import OutputError
from glmtune.use.predict import AnswerFile

EVERY = [[fault] for fault in (*ERRORS, KILL)]
IDENTITY = {"model": "nano", "prompts": "abc"}


def answered(number: int) -> dict[str, Any]:
    return {"row": number, "answer": f"第 {number} 个", "ended": True, "tokens": 3}


def test_answers_survive_every_failed_write(tmp_path: Path) -> None:
    root = tmp_path / "work"
    root.mkdir()
    path = root / "answers.jsonl"
    path.write_text("of an earlier model")  # as with --overwrite

    def predict() -> None:
        file = AnswerFile(path, IDENTITY)
        file.resume()

        def answers() -> Iterator[dict[str, Any]]:
            for number in (3, 1, 2):
                if number not in file.lines:
                    yield answered(number)

        file.write(answers())

    lefts = fail_everywhere(root, tmp_path / "kept", predict, *EVERY)

    whole = path.read_bytes()
    assert whole.count(b"\n") == 3
    assert len(lefts) > 24
    for left in lefts:
        check_sentence(left, OutputError)
        assert "output.dir" not in left.message
        found = (left.folder / "answers.jsonl").read_bytes()
        assert found in (b"of an earlier model", whole), left.point  # never a part of them
        if left.raised and "answers.jsonl.partial" not in left.point:
            held = (left.folder / "answers.jsonl.partial").read_text("utf-8")
            assert held.count("answer") == 3, left.point
        shutil.rmtree(root)
        shutil.copytree(left.folder, root)
        predict()
        assert path.read_bytes() == whole, left.point
        assert not (root / "answers.jsonl.partial").exists()
