"""Take a step again with smaller packs where the memory did not suffice, once.

    step 7    [A B C D] out of memory      [A B] [C] [D]     the same rows, at most half the tokens
    step 8    [E F G] ...                                    as planned

A step's loss is a mean over its rows, however they are packed, so the step learns the same: up to
the rounding of sums in another order, and to dropout, which draws other numbers. Every step begins
with the packs of the plan, so a resumed run repeats the same attempts. There is no second attempt
where one row alone does not fit, where the packs define the loss (`training.average`), where texts
are cut again for each pack (pre-training), and with several processes, which wait for each other.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from glmtune.data.batches import Batch, MicroBatch, batches
from glmtune.errors import TrainingError
from glmtune.recipe.recipe import Recipe
from glmtune.train import process_memory
from glmtune.train.checkpoint import restore_random_state
from glmtune.train.out_of_memory import OutOfMemory, memory_advice
from glmtune.train.step import StepResult, optimizer_step
from glmtune.train.training import Training

logger = logging.getLogger(__name__)


def step_or_smaller(
    training: Training, batch: Batch, rng: dict[str, Any], should_stop: Callable[[], bool]
) -> StepResult:
    """Take a step; where memory runs out, once more with smaller packs.

    Args:
        training: about to take the step.
        batch: of the step, as planned.
        rng: the state of the random generators before it.
        should_stop: as for `optimizer_step`.

    Raises:
        TrainingError: as `optimizer_step`; or memory runs out again, with what to change.
        Interrupted: as `optimizer_step`.
    """
    try:
        return optimizer_step(training, batch, should_stop)
    except OutOfMemory as error:
        smaller = _smaller(training, error.part)
        if smaller is None:
            raise TrainingError(_explained(training, error)) from None
        reason = str(error)
    # Past the handler, whose traceback would keep the tensors of the failed attempt.
    training.engine.optimizer.zero_grad(set_to_none=True)
    _release_memory()
    restore_random_state(rng)
    logger.warning(
        "step %d: %s. The step is taken again with %d packs in place of %d: the same rows, and "
        "the same result up to rounding and dropout",
        training.state.step + 1,
        reason,
        len(smaller.micro_batches),
        len(batch.micro_batches),
    )
    try:
        return optimizer_step(training, smaller, should_stop)
    except OutOfMemory as error:
        raise TrainingError(_explained(training, error)) from None


def _smaller(training: Training, part: MicroBatch) -> Batch | None:
    """Pack the rows of the step again, into at most half the tokens of the pack that failed."""
    plan, data = training.plan, training.data
    if (
        len(part.rows) < 2
        or plan.rows_per_micro_batch is not None
        or plan.num_processes > 1
        or not training.engine.has_plain_gradients
        or not isinstance(training.recipe, Recipe)
    ):
        return None
    half = replace(plan, max_tokens=part.input_ids.numel() // 2)
    step = training.state.step
    [batch] = batches(data.examples, data.lengths, half, step, step + 1, training.task.make)
    return batch


def _release_memory() -> None:
    process_memory.release_freed_pages()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _explained(training: Training, error: OutOfMemory) -> str:
    rows, tokens = len(error.part.rows), error.part.input_ids.numel()
    return (
        f"step {training.state.step + 1}: {error}. A pack of {rows} rows has {tokens:,} tokens. "
        f"{memory_advice(training.recipe, rows)}"
    )
