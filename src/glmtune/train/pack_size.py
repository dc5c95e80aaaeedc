"""How many tokens a pack has on a GPU: as many as its memory holds.

The rows of a step are given by the recipe. Into how many packs they go changes only the time, and a
GPU is idle for most of a small one:

    rows of a step     a b c d e f g h          as the recipe says
    packs of 512       abc | def | gh           batch size times data.max_length: the least
    packs of 8,192     abcdefgh                 as many as fit, measured before the first step

Only where not even the least fits, activations are recomputed in the backward pass, as with
training.gradient_checkpointing. A checkpoint records the number, so that a resumed run packs alike.
On a CPU packs stay as the recipe says: the products of 512 tokens fill it.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from glmtune.train.checkpoint import random_state, restore_random_state
from glmtune.train.dry_run import largest_training_pack, run_model
from glmtune.train.training import Training

logger = logging.getLogger(__name__)

LARGEST_PACK = 65_536  # tokens; attention addresses its buffers by 32 bits
SHARE_OF_FREE = 0.85  # the rest is for packs that differ, and for fragments
STEP = 256  # tokens; what is shorter than all of a step is a multiple of it


def fit_packs(training: Training) -> Training:
    """Choose how long the packs of a run are, if it is on one GPU.

    Args:
        training: about to start or to resume.

    Returns:
        The same, with another plan of its packs.
    """
    plan, engine, state = training.plan, training.engine, training.state
    device = engine.processes.device
    may_choose = engine.has_plain_gradients and engine.processes.num_processes == 1
    if device.type != "cuda" or not may_choose or plan.rows_per_micro_batch is not None:
        return training
    if state.step >= training.num_steps:
        return training
    least = most = state.pack_tokens or plan.max_tokens
    if state.pack_tokens is None:
        lengths = training.data.lengths
        steps = plan.known_steps(0, min(training.num_steps, plan.steps_per_epoch))
        most = max(sum(lengths[row] for row in plan.step_rows(step)) for step in steps)
    rng = random_state()
    # In its first step AdamW adds two moments of everything that is trained.
    trained = [p for p in engine.model.parameters() if p.requires_grad]
    moments = [] if engine.optimizer.state else [torch.zeros_like(p) for p in 2 * trained]
    chosen = choose_tokens(
        least,
        min(most, LARGEST_PACK),
        free_bytes=lambda: _free_bytes(device),
        bytes_taken=lambda tokens: _bytes_taken(training, tokens),
        recompute=lambda: _recompute(training, least),
    )
    del moments
    restore_random_state(rng)
    if chosen > plan.max_tokens:
        logger.info(
            "packs of up to %s tokens fit into this GPU (the batch size alone would make them "
            "%s); the rows of a step are the same",
            f"{chosen:,}",
            f"{plan.max_tokens:,}",
        )
    state.pack_tokens = chosen
    return replace(training, plan=replace(plan, max_tokens=chosen))


def choose_tokens(
    least: int,
    most: int,
    *,
    free_bytes: Callable[[], int],
    bytes_taken: Callable[[int], int | None],
    recompute: Callable[[], None],
) -> int:
    """Find the longest packs that fit.

    Args:
        least: tokens of a pack, which are not gone below.
        most: more are of no use.
        free_bytes: of the device.
        bytes_taken: by the heaviest pack of so many tokens; None if it does not fit.
        recompute: switches on the recomputation of activations.

    Returns:
        Tokens; `least` where not even that fits, which the dry run then explains.
    """
    taken = bytes_taken(least)
    if taken is None:
        recompute()
        taken = bytes_taken(least)
    if taken is None or most <= least:
        return least
    # What a pack takes whatever its length is counted as if it grew, so this errs downwards.
    fitting = int(SHARE_OF_FREE * free_bytes() / max(taken, 1) * least)
    tokens = most if fitting >= most else max(least, fitting // STEP * STEP)
    while tokens > least and bytes_taken(tokens) is None:
        tokens = max(least, tokens // 2 // STEP * STEP)
    return tokens


def _free_bytes(device: torch.device) -> int:
    """Count the bytes that are free, or that torch keeps for later tensors."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _bytes_taken(training: Training, max_tokens: int) -> int | None:
    """Run the heaviest pack of so many tokens, and count what it took; None if too much."""
    plan = replace(training.plan, max_tokens=max_tokens)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        run_model(training, training.data.examples, largest_training_pack(training, plan)[0])
        return torch.cuda.max_memory_allocated() - before
    except torch.OutOfMemoryError:
        return None
    finally:
        training.engine.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def _recompute(training: Training, tokens: int) -> None:
    model: Any = training.engine.unwrapped()
    model.activation_checkpointing_enable({"use_reentrant": False})
    logger.warning(
        "a pack of %s tokens does not fit into this GPU, so activations are recomputed in the "
        "backward pass, as with training.gradient_checkpointing=true, which takes longer",
        f"{tokens:,}",
    )
