"""A run over streamed rows: resumed to the same bytes, and refused where it cannot work."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from glmtune.data import streaming
from glmtune.errors import CheckpointError, DataError
from glmtune.files import sha256_of_file
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.checkpoint import load_state
from glmtune.train.identity import deciding_values
from glmtune.train.run import fine_tune

STREAMED = (
    "data.streaming=true", "data.shuffle_buffer=6", "data.eval=[]", "training.max_steps=5",
    "training.average=micro_batches", "adapter.lora_dropout=0.1", "checks.forgetting=null",
    "checks.answers_fit=false",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SEGMENT", 4)


@pytest.fixture
def recipe_for(recipe: Path) -> Callable[..., Recipe]:
    def make(name: str, *overrides: str) -> Recipe:
        output = recipe.parent / name
        return load_recipe(recipe, [*STREAMED, f"output.dir={output}", *overrides])

    return make


def weights(recipe: Recipe) -> str:
    return sha256_of_file(Path(recipe.output.dir) / "adapter_model.safetensors")


def interrupting(after: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that stops the run by Ctrl-C in its call of this number."""
    calls = 0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == after:
            import signal

            signal.raise_signal(signal.SIGINT)
        return cross_entropy_sum(logits, targets)

    return loss


def test_a_resumed_stream_ends_in_the_same_bytes(
    recipe_for: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    whole, stopped = recipe_for("whole"), recipe_for("stopped")
    with caplog.at_level("INFO"):
        fine_tune(whole)  # 20 rows of 9: more than two passes
    assert "all 9 rows were read, and they begin again" in caplog.text
    assert "lint and the proofs look at the first 1000" in caplog.text
    assert not fine_tune(stopped, loss=interrupting(16)).is_finished  # in the fourth step

    state = load_state(Path(stopped.output.dir) / "checkpoint-3")
    assert state.stream is not None
    assert state.stream.segment == 12 // 4
    assert fine_tune(stopped, resume=True).is_finished

    assert weights(stopped) == weights(whole)
    facts = json.loads((Path(stopped.output.dir) / "report.json").read_text("utf-8"))["facts"]
    whole_facts = json.loads((Path(whole.output.dir) / "report.json").read_text("utf-8"))["facts"]
    assert facts["num_train_rows"] == 20
    assert facts["data"] == whole_facts["data"]
    with pytest.raises(CheckpointError, match=r"data\.shuffle_buffer"):
        fine_tune(recipe_for("stopped", "data.shuffle_buffer=7"), resume=True)


def test_a_bad_row_ends_a_stream_with_its_place_and_leaves_the_checkpoints(
    recipe_for: Callable[..., Recipe], recipe: Path
) -> None:
    rows = Path(yaml.safe_load(recipe.read_text("utf-8"))["data"]["train"])
    good = json.loads(rows.read_text("utf-8"))
    broken = [*good, *good, *good, {"instruction": "一"}]  # beyond the first, which are looked at
    lines = [json.dumps(row, ensure_ascii=False) for row in broken]
    (rows.parent / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    failing = recipe_for("failing", f"data.train={rows.parent / 'rows.jsonl'}", "max_steps=8")

    with pytest.raises(DataError, match=r"rows\.jsonl:28: field 'output'"):
        fine_tune(failing)
    assert (Path(failing.output.dir) / "checkpoint-1").is_dir()


def test_recipes_that_do_not_stream_keep_their_identity(recipe: Path) -> None:
    plain = deciding_values(load_recipe(recipe))["data"]
    streamed = deciding_values(load_recipe(recipe, list(STREAMED)))["data"]

    assert {"streaming", "shuffle_buffer"}.isdisjoint(plain)
    assert (streamed["streaming"], streamed["shuffle_buffer"]) == (True, 6)
