"""The heaviest batches go first, so that trouble with memory comes in the first minute.

    held-out pack of most tokens     forward                what it leaves is thrown away,
    training pack of most tokens     forward and backward   random generators are put back

So the run takes the very steps that it would have taken, in the same bytes. The second pack also
tells how long they will take.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from glmtune.data.batches import Examples, heaviest
from glmtune.data.packing import group_rows
from glmtune.errors import TrainingError
from glmtune.machine import peak_memory_bytes
from glmtune.train import process_memory
from glmtune.train.checkpoint import random_state, restore_random_state
from glmtune.train.engines import deepspeed
from glmtune.train.loop import Run
from glmtune.units import duration

logger = logging.getLogger(__name__)


def rehearse(run: Run, learned: Sequence[int], eval_learned: Sequence[int]) -> None:
    """Send the heaviest packs of a run through the model, and say what they took.

    Args:
        run: about to start, or to go on.
        learned, eval_learned: learned tokens of every example, by index.

    Raises:
        TrainingError: there is not enough memory; says for how many tokens.
    """
    if deepspeed.is_engine(run.model):  # which would keep the gradient for the first step
        return
    rng = random_state()
    process_memory.give_back()  # what loading and the answers of the base have left
    packs = [
        pack
        for step in range(run.state.step, run.num_steps)
        for pack in run.plan.micro_batch_rows(step, run.lengths)
        if pack
    ]
    if not packs and run.state.step < run.num_steps:  # the others have some, and all must meet
        packs = [run.plan.step_rows(run.state.step)[:1]]
    eval_packs = group_rows(run.eval_rows, run.eval_lengths, run.plan.max_tokens)
    if eval_packs:
        pack = heaviest(eval_packs, run.eval_lengths, eval_learned)
        with torch.no_grad(), _explained("held-out", pack, run.eval_lengths):
            _take(run, run.eval_examples, pack)
    if packs:
        pack = heaviest(packs, run.lengths, learned)
        tokens = _count(pack, run.lengths)
        began = time.perf_counter()
        with _explained("training", pack, run.lengths):
            # In its first step AdamW adds two means of everything that is trained.
            trained = [p for p in run.model.parameters() if p.requires_grad]
            means = [] if run.optimizer.state else [torch.zeros_like(p) for p in 2 * trained]
            _take(run, run.examples, pack)
            del means
        seconds = time.perf_counter() - began
        run.optimizer.zero_grad(set_to_none=True)
        left = sum(_count(pack, run.lengths) for pack in packs)
        logger.info(
            "the heaviest pack, %d rows of together %s tokens, took %.3g s and %.2f GiB at most; "
            "at this rate the %d steps take %s",
            *(len(pack), f"{tokens:,}", seconds, peak_memory_bytes() / 2**30),
            *(run.num_steps - run.state.step, duration(seconds * left / tokens)),
        )
    for is_training in (True, False):
        run.objective.measured(is_training=is_training)  # and forget it
    process_memory.give_back()
    restore_random_state(rng)


def _take(run: Run, examples: Examples, rows: Sequence[int]) -> None:
    """Go forward, and backward where gradients are enabled."""
    is_training = torch.is_grad_enabled()
    model = run.model.train(is_training)
    batch = run.make(examples, rows, 0).to(run.accelerator.device)
    with run.accelerator.no_sync(model):  # other processes have other packs
        with run.autocast():
            loss = run.objective.loss(model, batch)
        if is_training:
            run.accelerator.backward(loss)
    loss.item()  # waits for a GPU


def _count(pack: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[row] for row in pack)


@contextmanager
def _explained(kind: str, pack: Sequence[int], lengths: Sequence[int]) -> Iterator[None]:
    """Say what there was no memory for."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"there is not enough memory for the heaviest {kind} pack, {len(pack)} rows of "
            f"together {_count(pack, lengths):,} tokens. Set training.gradient_checkpointing=true, "
            "or lower training.per_device_train_batch_size (and raise gradient_accumulation_steps "
            f"in its place) or data.max_length. ({str(error).splitlines()[0]})"
        ) from error
