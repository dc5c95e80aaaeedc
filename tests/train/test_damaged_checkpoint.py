"""A checkpoint with a file of another kind is refused by name, not with a traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from glmtune.errors import CheckpointError
from glmtune.train.checkpoint import (
    damage,
    load_state,
    random_state,
    restore_checkpoint,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a checkpoint that are restored besides the weights."""
    engine = engine_of()
    torch.save(engine.optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(engine.scheduler.state_dict(), tmp_path / "scheduler.pt")
    torch.save([random_state()], tmp_path / "rng_state.pth")
    return tmp_path


def engine_of() -> Any:
    """What `restore_checkpoint` uses of an engine."""
    from glmtune.train.engines.plain import PlainEngine

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    engine: Any = SimpleNamespace(
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 1.0),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        processes=SimpleNamespace(process_index=0),
    )
    engine._load_optimizer = optimizer.load_state_dict
    engine.restore = lambda path: PlainEngine.restore(engine, path)
    return engine


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def holding(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize(
    "harm",
    [
        cut,
        Path.unlink,
        holding([]),
        holding({}),
        holding(7),
        holding([{"python": 1}]),
        holding("x"),
    ],
)
def test_a_state_of_another_kind_is_refused(
    folder: Path, name: str, harm: Callable[[Path], None]
) -> None:
    restore_checkpoint(folder, engine_of())
    if name == "scheduler.pt" and harm not in (cut, Path.unlink):
        torch.save([1], folder / name)  # a scheduler takes whatever is an object
    else:
        harm(folder / name)

    with pytest.raises(CheckpointError, match=r"cannot be re(ad|stored)"):
        restore_checkpoint(folder, engine_of())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object, got a list"),
        ('{"step": 1', "cannot be read as JSON"),
        ('{"step": [1]}', r"step is \[1\], expected a valid integer"),
        ('{"step": 1, "identity": 5}', "identity is 5, expected a valid dictionary"),
        ('{"step": 1, "more": 5}', "more is not a key of this file"),
    ],
)
def test_a_state_of_the_loop_of_another_type_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "trainer_state.json").write_text(content)

    with pytest.raises(CheckpointError, match=message):
        load_state(tmp_path)


@pytest.mark.parametrize("content", ["[]", "7", "{", '{"a": '])
def test_checksums_of_another_type_make_a_checkpoint_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "checksums.json").write_text(content)

    assert "checksums.json cannot be read" in str(damage(tmp_path))
    shutil.rmtree(tmp_path)
