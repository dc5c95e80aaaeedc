"""Whatever happens at a write of a run, what was whole stays whole, and --resume ends in the same.

It fails, the process is killed there, or gets Ctrl-C once or twice, or SIGTERM.

Points that leave the same bytes are resumed once.
"""

import gc
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.faults import (
    ERRORS,
    INTERRUPTS,
    KILL,
    Left,
    check_sentence,
    fail_everywhere,
    limited_to,
    state_of,
)

from glmtune.errors import OutputError
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.checkpoint import damage
from glmtune.train.run import fine_tune
from glmtune.train.run_folder import checkpoints

ROWS = [{"instruction": f"{n} 加一等于几", "output": f"等于 {n + 1}。"} for n in range(4)]
NAME = "adapter_model.safetensors"
pytestmark = pytest.mark.slow
ALL = (
    os.environ.get("GLMTUNE_FAULTS") == "all"
)  # all that can happen, at every point; otherwise a part


@dataclass
class Work:
    """A folder with all that a run writes, and what a run that nothing disturbed has written."""

    root: Path
    kept: Path
    recipe: Recipe
    left: list[Left]
    whole: Path

    @property
    def output(self) -> Path:
        return self.root / "out"

    def restore(self, left: Left | None) -> None:
        """Put what a failed run has left where it was; None: nothing."""
        shutil.rmtree(self.root)
        if left is None:
            self.root.mkdir()
        else:
            shutil.copytree(left.folder, self.root, symlinks=True)


def recipe_for(model: Path, rows: Path, output: Path) -> Recipe:
    return build_recipe(
        {
            "model": {"name_or_path": str(model), "dtype": "float32"},
            "data": {"train": str(rows)},
            "adapter": {"r": 2},
            "training": {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 2,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
                "save_total_limit": 1,  # so that folders are deleted too
                "use_cpu": True,
            },
            "lint": {"before_training": False},
            "checks": {
                "stock_reader": False,
                "stop_prompts": 0,
                "max_new_tokens": 1,
                "forgetting": None,
            },
            "output": {"dir": str(output), "report_to": "none"},
        }
    )


@pytest.fixture(scope="module")
def work(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """Every operation of a run has failed."""
    base = tmp_path_factory.mktemp("faults")
    rows, root, kept = base / "rows.json", base / "work", base / "kept"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLMTUNE_CACHE", str(root / "cache"))
        recipe = recipe_for(tiny_model_dir, rows, root / "out")
        fine_tune(recipe)  # imports what there is to import
        shutil.rmtree(root)
        root.mkdir()
        gc.collect()
        gc.freeze()  # or every run spends most of its time in a collection, and forks copy more
        once, twice, term = INTERRUPTS
        some = [KILL, None, None, once, None, None, twice, None, term, None, None]
        every = [[fault] for fault in (*ERRORS, KILL, *INTERRUPTS)]
        left = fail_everywhere(
            root, kept, lambda: fine_tune(recipe), *(every if ALL else [ERRORS, some])
        )
        whole = base / "whole"
        shutil.copytree(root / "out", whole)
        yield Work(root, kept, recipe, left, whole)
        gc.unfreeze()


def lines(output: Path) -> list[dict[str, float]]:
    kept = ("step", "loss", "grad_norm")
    text = (output / "metrics.jsonl").read_text(encoding="utf-8")
    return [{key: json.loads(line)[key] for key in kept} for line in text.splitlines()]


def published(output: Path) -> list[str]:
    """The names of all that stays; a checkpoint that could not be deleted is one more."""
    return sorted(name for name in os.listdir(output) if not name.startswith("checkpoint"))


def test_a_failed_write_is_one_sentence_and_leaves_what_was_whole(work: Work) -> None:
    assert len(work.left) > 100
    for left in work.left:
        output = left.folder / "out"
        assert not [damage(each) for each in checkpoints(output) if damage(each)], left.point
        check_sentence(left, OutputError)
        if left.raised == OutputError.__name__:
            assert "could not be written" in left.message, left.point


def test_resuming_after_any_failed_write_ends_in_the_same_bytes(work: Work) -> None:
    states: dict[str, Left] = {}
    for left in work.left:
        states.setdefault(state_of(left.folder), left)
    chosen = list(states.values()) if ALL else list(states.values())[::3]
    print(f"{len(work.left)} faults, {len(states)} states, {len(chosen)} resumed")
    for left in chosen:
        work.restore(left)

        assert fine_tune(work.recipe, resume=True).is_finished, left.point

        written = (work.output / NAME).read_bytes()
        assert written == (work.whole / NAME).read_bytes(), left.point
        assert lines(work.output) == lines(work.whole), left.point
        assert published(work.output) == published(work.whole), left.point


@pytest.mark.parametrize("num_bytes", [0, 700, 4_000, 20_000])
def test_what_libraries_cannot_write_is_one_sentence_too(work: Work, num_bytes: int) -> None:
    """C++ and Rust write Arrow files, weights and optimizer states."""
    work.restore(None)

    with limited_to(num_bytes), pytest.raises(OutputError, match="could not be written") as caught:
        fine_tune(work.recipe)

    assert "\n" not in str(caught.value)
    assert not [damage(each) for each in checkpoints(work.output) if damage(each)]
    assert fine_tune(work.recipe, resume=True).is_finished
    assert (work.output / NAME).read_bytes() == (work.whole / NAME).read_bytes()
