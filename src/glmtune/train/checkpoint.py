"""Everything needed to resume, saved and restored.

    checkpoint-40/
        adapter_config.json, adapter_model.safetensors, ...   usable as an adapter, or as a
                                                              model where that is what is trained
        optimizer.pt, scheduler.pt, rng_state.pth             rng_state.pth for every rank
        scaler.pt                                             where the loss is scaled
        zero/                                                 in place of optimizer.pt, DeepSpeed's
        trainer_state.json                                    steps done, best evaluation
        checksums.json                                        sha256 of every other file

A checkpoint is written under another name and renamed when it is complete, and its checksums
are verified before it is used: a damaged one is skipped in favor of the one before it.
"""

import json
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from glmtune.data.streaming import StreamCursor
from glmtune.errors import CheckpointError, GlmtuneError
from glmtune.files import (
    read_json_as,
    read_json_object,
    remove_folder,
    sha256_of_file,
    written_folder,
)
from glmtune.methods import method
from glmtune.model.files import first_lines, read_saved
from glmtune.template.base import Template
from glmtune.train.engines.engine import Collected, Engine
from glmtune.train.engines.plain import OPTIMIZER
from glmtune.train.run_folder import checkpoints

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
STATE = "trainer_state.json"
EARLIER = "Delete this checkpoint, so that the run resumes from the one before it."
NEEDED = ("scheduler.pt", "rng_state.pth")
OF_A_CHECKPOINT = (".safetensors", ".bin", ".pt", ".pth", ".json")  # only we write such files there


@dataclass(slots=True)
class TrainerState:
    """What a checkpoint saves of the loop itself. `step` counts finished optimizer steps.

    Attributes:
        identity: what must not change between a run and its resumption, by name (identity.py).
        recipe: the values that these hash, by section and key; empty in earlier checkpoints.
        working_directory: that paths among them are relative to.
        loss_sum, learned_tokens: since the last line of metrics.
        best_eval_loss, best_step: of the best evaluation so far.
        best_score: its metric_for_best_model; None where that is the loss.
        replayed_rows: general rows that were mixed in so far.
        skipped_steps: that changed nothing, since a gradient did not fit float16.
        pack_tokens: of a pack at most, where a GPU's memory decided it; None otherwise.
        stream: where to read on, with data.streaming; None without.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    step: int = 0
    identity: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    working_directory: str = ""
    loss_sum: float = 0.0
    learned_tokens: int | float = 0  # labels may have weights
    best_eval_loss: float | None = None
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_gain: int = 0
    replayed_rows: int = 0
    skipped_steps: int = 0
    pack_tokens: int | None = None
    stream: StreamCursor | None = None


def random_state() -> dict[str, Any]:
    """Take the state of every random generator that training draws from."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` took."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(
    output: Path,
    *,
    engine: Engine,
    collected: Collected,
    state: TrainerState,
    random_states: Sequence[Mapping[str, Any]],
    template: Template,
) -> Path:
    """Write `checkpoint-<step>` completely or not at all.

    Args:
        output: where the run writes.
        engine: holds model, learning rate and loss scale.
        collected: what the engine has collected for this checkpoint.
        state: of the loop.
        random_states: of every process.
        template: of the prompts.

    Raises:
        OutputError: it could not be written; earlier checkpoints are unharmed.
    """
    folder = output / f"checkpoint-{state.step}"
    with written_folder(folder) as partial:
        method.save(engine.unwrapped(), partial, template, collected.tensors)
        if isinstance(collected.optimizer, Path):
            collected.optimizer.replace(partial / collected.optimizer.name)
            shutil.rmtree(collected.optimizer.parent)  # DeepSpeed leaves a script there
        else:
            torch.save(collected.optimizer, partial / OPTIMIZER)
        torch.save(engine.scheduler.state_dict(), partial / "scheduler.pt")
        if engine.scaler.is_enabled():
            torch.save(engine.scaler.state_dict(), partial / "scaler.pt")
        torch.save([dict(each) for each in random_states], partial / "rng_state.pth")
        (partial / STATE).write_text(json.dumps(_values(state), indent=2), encoding="utf-8")
        (partial / CHECKSUMS).write_text(json.dumps(_checksums(partial), indent=2), "utf-8")
    return folder


def _values(state: TrainerState) -> dict[str, Any]:
    """Return what is written; what was not chosen is left out, as in earlier checkpoints."""
    values = asdict(state)
    for name in ("pack_tokens", "stream"):
        if values[name] is None:
            del values[name]
    return values


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            sums[path.relative_to(folder).as_posix()] = sha256_of_file(path)
    return sums


def damage(folder: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None when it is intact.

    Files that somebody added, such as notes, do no harm.
    """
    try:
        expected = read_json_object(folder / CHECKSUMS)
    except CheckpointError as error:
        return f"its {CHECKSUMS} cannot be read ({error})"
    found = _checksums(folder)
    for name, digest in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} is not what was written (its checksum differs)"
    needed = {STATE, *NEEDED, *(name for name in found if Path(name).suffix in OF_A_CHECKPOINT)}
    if unlisted := sorted(needed - expected.keys()):
        return f"{unlisted[0]} is not in its {CHECKSUMS}"
    return None


def newest_intact_checkpoint(output: Path) -> Path | None:
    """Find where to resume, skipping damaged checkpoints with a warning.

    Returns:
        None where no checkpoint has been written yet: the run starts at its beginning.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    found = checkpoints(output)
    for folder in reversed(found):
        problem = damage(folder)
        if problem is None:
            return folder
        logger.warning("%s is damaged: %s. Trying the one before it.", folder, problem)
    if not found:
        return None
    raise CheckpointError(
        f"{output}: nothing to resume, every checkpoint in it is damaged. Start again without "
        "--resume, with output.overwrite=true if the folder may be replaced."
    )


def load_state(folder: Path) -> TrainerState:
    """Read the state of the loop from a checkpoint.

    Raises:
        CheckpointError: the file is damaged, or a value has another type.
    """
    return read_json_as(folder / STATE, TrainerState, remedy=EARLIER)[0]


def restore_checkpoint(folder: Path, engine: Engine) -> None:
    """Restore optimizer, learning rate, loss scale and this process's random generators.

    The weights are restored before, by `method.restore`, since the engine may shard them.

    Raises:
        CheckpointError: a file is damaged, or is of another run.
    """
    scaler = read_saved(folder / "scaler.pt") if engine.scaler.is_enabled() else None
    try:
        engine.restore(folder)
        engine.scheduler.load_state_dict(read_saved(folder / "scheduler.pt"))
        if scaler is not None:
            engine.scaler.load_state_dict(scaler)
        states = read_saved(folder / "rng_state.pth")
        restore_random_state(states[engine.processes.process_index])
    except GlmtuneError:
        raise
    except Exception as error:  # torch takes these states apart without checking them
        raise CheckpointError(
            f"{folder}: optimizer, learning rate or random generators cannot be restored "
            f"({type(error).__name__}: {first_lines(error)}) {EARLIER}"
        ) from error


def prune_checkpoints(output: Path, limit: int | None, newest: int, best: int | None) -> None:
    """Delete the oldest checkpoints beyond a limit, and what a damaged end of the run left.

    Args:
        output: the folder of the run.
        limit: how many stay; None keeps all. The newest stays, and so does the best.
        newest: the step of the checkpoint just saved. Those of later steps were damaged, or the run
            would have been resumed there.
        best: the step whose weights are needed at the end, if any.
    """
    if limit is None:
        return
    steps = [int(path.name.rpartition("-")[2]) for path in checkpoints(output)]
    needed = {newest, best} & set(steps)
    others = [step for step in steps if step not in needed and step < newest]
    room = max(0, limit - len(needed))
    kept = needed | set(others[len(others) - room :])
    for step in steps:
        if step not in kept:
            remove_folder(output / f"checkpoint-{step}")
