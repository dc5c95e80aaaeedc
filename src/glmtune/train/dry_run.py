"""A dry run of the largest packs before the first step, so that memory runs out early or never.

    held-out pack of most tokens     forward                results are discarded, and random
    training pack of most tokens     forward and backward   generators are restored

So the run takes the same steps as without a dry run, to the same bytes. The time of the training
pack also gives an estimate of the run's.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from glmtune.data.batches import BatchPlan, Examples, heaviest
from glmtune.data.packing import group_rows
from glmtune.errors import TrainingError
from glmtune.machine import peak_memory_bytes
from glmtune.recipe.recipe import RunRecipe
from glmtune.train import process_memory
from glmtune.train.checkpoint import random_state, restore_random_state
from glmtune.train.out_of_memory import is_out_of_memory, memory_advice
from glmtune.train.training import Training
from glmtune.units import duration

logger = logging.getLogger(__name__)


def dry_run(training: Training) -> None:
    """Run the largest packs of a run through the model, and log the time and memory they took.

    Args:
        training: about to start or to resume.

    Raises:
        TrainingError: there is not enough memory; names the number of tokens.
    """
    if not training.engine.has_plain_gradients:  # they would be added to those of the first step
        return
    rng = random_state()
    process_memory.release_freed_pages()  # of loading, and of the answers of the base
    _evaluate_largest(training)
    _train_largest(training)
    for is_training in (True, False):
        training.task.objective.measured(is_training=is_training)  # reset
    process_memory.release_freed_pages()
    restore_random_state(rng)


def _evaluate_largest(training: Training) -> None:
    data = training.data
    packs = group_rows(data.eval_rows, data.eval_lengths, training.plan.max_tokens)
    if not packs:
        return
    learned = data.eval_learned_lengths
    pack = heaviest(packs, data.eval_lengths, learned)
    with torch.no_grad(), _explained(training.recipe, "held-out", pack, data.eval_lengths):
        run_model(training, data.eval_examples, pack)


def _train_largest(training: Training) -> None:
    data, engine = training.data, training.engine
    steps = range(training.state.step, training.num_steps)
    if not steps:
        return
    pack, all_tokens = largest_training_pack(training, training.plan)
    tokens = _count_tokens(pack, data.lengths)
    num_known = len(training.plan.known_steps(steps.start, steps.stop))
    began = time.perf_counter()
    with _explained(training.recipe, "training", pack, data.lengths):
        # In its first step AdamW adds two moments of everything that is trained.
        trained = [p for p in engine.model.parameters() if p.requires_grad]
        moments = [] if engine.optimizer.state else [torch.zeros_like(p) for p in 2 * trained]
        run_model(training, data.examples, pack)
        del moments
    seconds = time.perf_counter() - began
    engine.optimizer.zero_grad(set_to_none=True)
    logger.info(
        "the heaviest pack, %d rows of together %s tokens, took %.3g s and %.2f GiB at most; "
        "at this rate the %d steps take %s",
        len(pack),
        f"{tokens:,}",
        seconds,
        peak_memory_bytes() / 2**30,
        len(steps),
        duration(seconds * all_tokens / tokens * len(steps) / num_known),
    )


def largest_training_pack(training: Training, plan: BatchPlan) -> tuple[Sequence[int], int]:
    """Return the rows of the heaviest pack that is still to come, and the tokens of all of them."""
    data = training.data
    steps = training.plan.known_steps(training.state.step, training.num_steps)
    packs = [pack for step in steps for pack in plan.micro_batch_rows(step, data.lengths) if pack]
    if not packs:  # other processes have some, and all take part in each
        packs = [plan.step_rows(steps[0])[:1]]
    learned = data.learned_lengths
    all_tokens = sum(_count_tokens(each, data.lengths) for each in packs)
    return heaviest(packs, data.lengths, learned), all_tokens


def run_model(training: Training, examples: Examples, rows: Sequence[int]) -> None:
    """Run forward, and backward where gradients are enabled."""
    is_training = torch.is_grad_enabled()
    engine, task = training.engine, training.task
    engine.model.train(is_training)
    batch = task.make(examples, rows, 0).to(engine.processes.device)
    with engine.accumulate(is_last=False):  # other processes have other packs
        with engine.autocast():
            loss = task.objective.loss(engine.model, batch)
        if is_training:
            engine.backward(loss)
    loss.item()  # waits for a GPU


def _count_tokens(pack: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[row] for row in pack)


@contextmanager
def _explained(
    recipe: RunRecipe, kind: str, pack: Sequence[int], lengths: Sequence[int]
) -> Iterator[None]:
    """Name the pack that there was not enough memory for."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"there is not enough memory for the heaviest {kind} pack, {len(pack)} rows of "
            f"together {_count_tokens(pack, lengths):,} tokens. "
            f"{memory_advice(recipe, len(pack))} ({str(error).splitlines()[0]})"
        ) from error
