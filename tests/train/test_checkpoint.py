"""Which checkpoints are intact, and which stay."""

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.files import sha256_of_file
from glmtune.train.checkpoint import CHECKSUMS, damage, prune_checkpoints

FILES = (
    "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth",
    "scheduler.pt", "trainer_state.json",
)  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text(name)
    listed = {name: sha256_of_file(tmp_path / name) for name in FILES}
    (tmp_path / CHECKSUMS).write_text(json.dumps(listed))
    return tmp_path


def test_a_checkpoint_with_notes_beside_it_is_intact(checkpoint: Path) -> None:
    (checkpoint / "notes.txt").write_text("mine")

    assert damage(checkpoint) is None


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_checksums_do_not_list_is_damage(checkpoint: Path, name: str) -> None:
    listed = json.loads((checkpoint / CHECKSUMS).read_text())
    del listed[name]
    (checkpoint / CHECKSUMS).write_text(json.dumps(listed))

    assert damage(checkpoint) == f"{name} is not in its checksums.json"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({}, "adapter_config.json is not in"),
        ([], "expected a JSON object, got a list"),
        (None, "got null"),
    ],
)
def test_checksums_of_nothing_make_no_checkpoint_whole(
    checkpoint: Path, content: Any, complaint: str
) -> None:
    (checkpoint / CHECKSUMS).write_text(json.dumps(content))

    assert complaint in str(damage(checkpoint))


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [2, 4, 6, 8, 10, 12]),
        (3, None, [6, 8, 10]),  # 12 was damaged, or the run would have been resumed there
        (3, 4, [4, 8, 10]),
        (2, 4, [4, 10]),
        (1, 4, [4, 10]),  # the newest to resume, the best to publish
        (1, None, [10]),
        (1, 10, [10]),
        (9, 4, [2, 4, 6, 8, 10]),
    ],
)
def test_as_many_checkpoints_stay_as_the_limit_says(
    tmp_path: Path, limit: int | None, best: int | None, kept: list[int]
) -> None:
    for step in (2, 4, 6, 8, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()

    prune_checkpoints(tmp_path, limit, newest=10, best=best)

    assert sorted(int(path.name.partition("-")[2]) for path in tmp_path.iterdir()) == kept
