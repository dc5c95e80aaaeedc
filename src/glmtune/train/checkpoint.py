"""Everything needed to resume, saved and restored.

    checkpoint-40/
        adapter_config.json, adapter_model.safetensors, ...   usable as an adapter, or as a
                                                              model where that is what is trained
        optimizer.pt, scheduler.pt, rng_state.pth             the last for every process
        scaler.pt                                             where the loss is scaled
        zero/                                                 in place of optimizer.pt, DeepSpeed's
        trainer_state.json                                    steps done, best evaluation
        checksums.json                                        sha256 of every other file

A checkpoint is written under another name and renamed when it is whole, and its checksums
are verified before it is used: a damaged one is passed over for the one before it.
"""

import json
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError
from glmtune.files import sha256_of_file, written_folder
from glmtune.methods import method
from glmtune.template.base import Template
from glmtune.train.engines.fsdp import load_optimizer
from glmtune.train.run_folder import checkpoints

logger = logging.getLogger(__name__)

Gathered = tuple[Mapping[str, Tensor] | None, dict[str, Any] | Path]
"""The tensors of a model, where it has not all of them itself; and the state of its optimizer, or
the folder where every process has written its part."""

CHECKSUMS = "checksums.json"
STATE = "trainer_state.json"


@dataclass(slots=True)
class TrainerState:
    """Where a run stands. `step` counts finished optimizer steps.

    Attributes:
        identity: what must not change between a run and its resumption, by name.
        loss_sum, learned_tokens: since the last line of metrics.
        replayed_rows: general rows that were mixed in so far.
        skipped_steps: that changed nothing, since a gradient did not fit float16.
    """

    step: int = 0
    identity: dict[str, str] = field(default_factory=dict)
    loss_sum: float = 0.0
    learned_tokens: int = 0
    best_eval_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    replayed_rows: int = 0
    skipped_steps: int = 0


def random_state() -> dict[str, Any]:
    """Take the state of every random generator that training draws from."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` took."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(
    output: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
    state: TrainerState,
    rng: Sequence[Mapping[str, Any]],
    template: Template,
    gathered: Gathered | None = None,
) -> Path:
    """Write `checkpoint-<step>` whole or not at all.

    Args:
        output: where the run writes.
        model, optimizer, scheduler, scaler, state: of the run.
        rng: the random state of every process.
        template: of the prompts.
        gathered: what is dealt out of model and optimizer.

    Raises:
        OutputError: it could not be written; earlier checkpoints are unharmed.
    """
    folder = output / f"checkpoint-{state.step}"
    with written_folder(folder) as partial:
        tensors, adam = gathered or (None, optimizer.state_dict())
        method.save(model, partial, template, tensors)
        if isinstance(adam, Path):
            adam.replace(partial / adam.name)
            shutil.rmtree(adam.parent)  # DeepSpeed leaves a script there
        else:
            torch.save(adam, partial / "optimizer.pt")
        torch.save(scheduler.state_dict(), partial / "scheduler.pt")
        if scaler.is_enabled():
            torch.save(scaler.state_dict(), partial / "scaler.pt")
        torch.save([dict(state) for state in rng], partial / "rng_state.pth")
        (partial / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        (partial / CHECKSUMS).write_text(json.dumps(_checksums(partial), indent=2), "utf-8")
    return folder


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            sums[path.relative_to(folder).as_posix()] = sha256_of_file(path)
    return sums


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None when it is whole."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"its {CHECKSUMS} cannot be read ({error})"
    found = _checksums(folder)
    for name, digest in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} is not what was written (its checksum differs)"
    return None


def newest_whole_checkpoint(output: Path) -> Path | None:
    """Find where to resume, passing over damaged checkpoints and saying so.

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
        f"{output}: nothing to resume, every checkpoint in it is damaged. Start anew without "
        "--resume, with output.overwrite=true if the folder may be replaced."
    )


def load_state(folder: Path) -> TrainerState:
    """Read where a checkpoint's run stood."""
    return TrainerState(**json.loads((folder / STATE).read_text(encoding="utf-8")))


def check_identity(state: TrainerState, identity: Mapping[str, str], folder: Path) -> None:
    """Refuse to resume a run with other data, another recipe or another template.

    Raises:
        CheckpointError: names what changed.
    """
    changed = [
        f"{name} (was {state.identity.get(name, 'nothing')}, now {value})"
        for name, value in identity.items()
        if state.identity.get(name) != value
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: cannot resume, since something changed: {'; '.join(changed)}. "
            "Undo the change, or start a new run in another output.dir."
        )


def restore_checkpoint(
    folder: Path,
    optimizer: torch.optim.Optimizer | None,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
    process_index: int = 0,
) -> None:
    """Put optimizer, learning rate, loss scale and random generators back as they were.

    The weights are put back before, by `tuning.restore`, while the model is still whole; without
    an optimizer DeepSpeed does its part.
    """
    if optimizer is not None:
        load_optimizer(optimizer, torch.load(folder / "optimizer.pt", weights_only=True))
    scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
    if scaler.is_enabled():
        scaler.load_state_dict(torch.load(folder / "scaler.pt", weights_only=True))
    states = torch.load(folder / "rng_state.pth", weights_only=True)
    restore_random_state(states[process_index])


def prune_checkpoints(output: Path, limit: int | None, keep: int | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, but never the one of step `keep`."""
    if limit is None:
        return
    kept = [path for path in checkpoints(output) if path.name != f"checkpoint-{keep}"]
    room = max(1, limit - (len(checkpoints(output)) - len(kept)))
    for path in kept[:-room]:
        shutil.rmtree(path)
