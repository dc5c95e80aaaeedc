"""One optimizer step.

A step learns a fixed set of rows, split into micro-batches that fit in memory:

    for each micro-batch:   loss = sum over its learned tokens / learned tokens of the step
                            backward
    clip the gradient's norm, step the optimizer, step the learning rate

A GPU works through this while the host is ahead of it. The host waits once, for the losses and the
norm, before the optimizer steps. On a CPU, where waiting costs nothing, a loss is looked at as soon
as it is there.

A loss or a gradient that is not finite stops the run before it changes a weight, with the rows and
the first module at fault. In float16 a gradient may overflow, and the step is skipped
(`train/precision.py`).
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.data.batches import Batch, MicroBatch
from glmtune.errors import TrainingError
from glmtune.objective.next_token import NeedsWholeStep
from glmtune.prove import liveness
from glmtune.recipe.sections import TrainingSection
from glmtune.train import process_memory
from glmtune.train.engines.engine import NonFiniteGradientError, StepOutcome
from glmtune.train.out_of_memory import recognized
from glmtune.train.training import Training

logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818  # not an error: the user asked for it
    """The user, or the machine's scheduler, asked the run to stop."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss_sum: in nats, over this step's learned tokens, on all processes.
        learned_tokens: their number, or the sum of their weights.
        tokens: real tokens, padding not counted.
        grad_norm: the gradient's 2-norm before clipping; not finite where the step was skipped.
        learning_rate: of this step.
    """

    loss_sum: float
    learned_tokens: float
    tokens: int
    grad_norm: float
    learning_rate: float


def optimizer_step(
    training: Training, batch: Batch, should_stop: Callable[[], bool] = lambda: False
) -> StepResult:
    """Learn the rows of one batch.

    Raises:
        TrainingError: the loss or the gradient is not finite; no weight has changed.
        OutOfMemory: a pack does not fit; no weight has changed.
        Interrupted: `should_stop` asked for it between two micro-batches; no weight has changed.
    """
    engine = training.engine
    engine.model.train()
    engine.optimizer.zero_grad(set_to_none=True)
    losses, learned_tokens = _accumulate_gradients(training, batch, should_stop)
    learning_rate = float(engine.scheduler.get_last_lr()[0])
    if training.state.step == 0 and engine.has_plain_gradients:
        liveness.check_gradients(engine.unwrapped())
    norm = engine.clip(training.section.max_grad_norm)
    loss_sum, read_norm = _read(training, batch, losses, norm)
    grad_norm = _change_weights(training, batch, read_norm)
    tokens = sum(training.data.lengths[row] for row in batch.rows)
    return StepResult(
        loss_sum=engine.processes.sum(loss_sum),
        learned_tokens=learned_tokens,
        tokens=int(engine.processes.sum(tokens)),
        grad_norm=grad_norm,
        learning_rate=learning_rate,
    )


def _accumulate_gradients(
    training: Training, batch: Batch, should_stop: Callable[[], bool]
) -> tuple[list[Tensor], float]:
    """Sum the gradients of a step's micro-batches.

    Returns:
        The losses of this process's micro-batches, and the learned tokens of all processes.
    """
    engine, objective = training.engine, training.task.objective
    processes = engine.processes
    counts = [objective.count(part) for part in batch.micro_batches]
    learned = processes.sum(sum(counts))
    num_parts = processes.sum(sum(bool(part.rows) for part in batch.micro_batches))
    if isinstance(objective, NeedsWholeStep):
        with engine.autocast():
            objective.begin(engine.model, batch.micro_batches, processes.device, processes.sum)
    waits = waits_at_once(processes.device)
    losses: list[Tensor] = []
    for index, (part, count) in enumerate(zip(batch.micro_batches, counts, strict=True)):
        # All processes leave together, for which a GPU is waited for.
        if (waits or processes.num_processes == 1 or index == 0) and processes.any(should_stop()):
            engine.optimizer.zero_grad(set_to_none=True)
            raise Interrupted
        began = time.perf_counter()
        on_device = part.to(processes.device)
        is_last = index + 1 == len(batch.micro_batches)
        with recognized(part), engine.accumulate(is_last=is_last):
            with engine.autocast():
                loss = objective.loss(engine.model, on_device)
            if waits and not loss.isfinite():
                raise _nonfinite_loss(training, on_device, loss.item())
            share = _share(training.section, count, learned, num_parts)
            # Gradients are averaged over processes, but this loss is to be summed over them.
            engine.backward(loss * (share * processes.num_processes))
        losses.append(loss.detach())
        del loss
        if time.perf_counter() - began > process_memory.SLOW_SECONDS:
            process_memory.release_freed_pages()
    return losses, int(learned) if learned == int(learned) else learned


def waits_at_once(device: torch.device) -> bool:
    """Whether a loss can be read as soon as it is there; a GPU would lie idle until the next."""
    return device.type == "cpu"


def _read(
    training: Training, batch: Batch, losses: Sequence[Tensor], norm: Tensor | None
) -> tuple[float, float | None]:
    """Read the losses and the norm at once.

    Returns:
        The sum of the losses, and the norm.

    Raises:
        TrainingError: a loss is not finite.
    """
    given = [*losses] if norm is None else [*losses, norm]
    values: list[float] = torch.stack([each.float() for each in given]).tolist()
    read_norm = None if norm is None else values.pop()
    total = 0.0
    for part, loss in zip(batch.micro_batches, values, strict=True):
        total += loss
        if not math.isfinite(loss):
            raise _nonfinite_loss(training, part.to(training.engine.processes.device), loss)
    return total, read_norm


def _share(
    section: TrainingSection, count: float, learned: float, num_micro_batches: float
) -> float:
    """What a micro-batch's summed loss is multiplied by, to make the step's mean of it.

    The counts are those of all processes, so that their number changes nothing.
    """
    if section.average == "tokens":
        return 1 / (learned or 1)
    return 1 / (count or 1) / num_micro_batches


def _change_weights(training: Training, batch: Batch, norm: float | None) -> float:
    """Step, and give the gradient's norm."""
    engine, step = training.engine, training.state.step + 1
    scale = engine.scaler.get_scale()
    try:
        outcome: StepOutcome = engine.step(norm)
    except NonFiniteGradientError as error:
        raise TrainingError(
            f"step {step}: the loss is finite but the gradient is not (norm {error.norm})"
            f"{error.culprit}. Rows: {_origins(training, batch.rows)}. {error.remedy}"
        ) from None
    if outcome.was_skipped:
        _note_skipped(training, batch, scale)
    return outcome.grad_norm


def _note_skipped(training: Training, batch: Batch, scale: float) -> None:
    """Count a skipped step, and stop the run if the loss scale is too small by now."""
    state, step = training.state, training.state.step + 1
    state.skipped_steps += 1
    new_scale = training.engine.scaler.get_scale()
    if new_scale < training.checks.smallest_loss_scale:
        raise TrainingError(
            f"step {step}: a gradient is not finite in float16, though the loss is scaled by no "
            f"more than {scale:g} after {state.skipped_steps} skipped steps. "
            f"Rows: {_origins(training, batch.rows)}. This step changed no weight. "
            "Use bfloat16 or float32 in place of float16, or lower training.learning_rate."
        )
    logger.info(
        "step %d: a gradient did not fit float16, so no weight was changed and the loss is "
        "scaled by %g from now on (skipped steps so far: %d)",
        step,
        new_scale,
        state.skipped_steps,
    )


def _origins(training: Training, rows: Sequence[int]) -> str:
    shown = ", ".join(training.data.origin(row) for row in rows[:8])
    return shown + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")


def _nonfinite_loss(training: Training, micro_batch: MicroBatch, loss: float) -> TrainingError:
    """Find out where a loss stopped being finite."""
    engine = training.engine
    if engine.can_run_alone:
        culprit = first_nonfinite_module(engine.unwrapped(), micro_batch, engine.autocast)
    else:  # the other ranks would have to run the model again, too
        culprit = "not searched for, since training.sharding is on"
    return TrainingError(
        f"step {training.state.step + 1}: the loss is {loss}. "
        f"First module with an output that is not finite: {culprit}. "
        f"Rows: {_origins(training, micro_batch.rows)}. No weight was changed by this step. "
        "Lower training.learning_rate, look at these rows with `glmtune inspect`, or use "
        "model.dtype=bfloat16 instead of float16."
    )


@torch.no_grad()
def first_nonfinite_module(
    model: nn.Module,
    micro_batch: MicroBatch,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> str:
    """Run a micro-batch again and name the innermost module whose output is not finite.

    Returns:
        The module's name, and whether its own weights are not finite; or "none (the loss
        itself)" where every module's output is finite.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            is_bad = any(
                isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all()
                for t in tensors
            )
            if is_bad and not found:
                own = [n for n, p in module.named_parameters(recurse=False) if not _is_finite(p)]
                found.append(f"{name}, whose {' and '.join(own)} is not finite" if own else name)

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    try:
        with autocast():
            model(**micro_batch.inputs(), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0].removeprefix("base_model.model.") if found else "none (the loss itself)"


def _is_finite(parameter: nn.Parameter) -> bool:
    return bool(parameter.isfinite().all())
