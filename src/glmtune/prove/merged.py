"""Proof that the merged model answers the same."""

from collections.abc import Sequence
from typing import Any

import torch

from glmtune.methods import method
from glmtune.prove.proof import MERGED, Proof
from glmtune.prove.streamed import Probe, compare, percent, score_answer
from glmtune.use.export import merge

NOISE = 3  # times what rounding does to the same weights, merged ones may differ


def check_merged(model: Any, probes: Sequence[Probe], tolerance: float) -> Proof:
    """Merge the adapter into the base, layer by layer, and score the probes again.

    Nothing but the merged model is left afterwards, so this is the last proof. Weights that are
    rounded to half precision lose a part of a small update; how much is measured beside what
    the adapter changes.

    Args:
        model: the trained peft model.
        probes: made with it before.
        tolerance: of the difference, as a share of what the adapter changes.
    """
    if not method.is_adapted(model):
        return Proof(MERGED, "not run", "the model itself was trained, and nothing is to merge")
    if not merge.can_merge(model):
        return Proof(MERGED, "not run", "such an adapter, or such a base, cannot be merged")
    with model.disable_adapter():
        base = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    effect = compare(base).largest
    noise = compare([(each.streamed, each.trained) for each in probes]).largest
    if not effect > NOISE * noise:
        told = f"the adapter changes scores by {percent(effect)} of their spread, and rounding by "
        return Proof(MERGED, "not run", f"{told}{percent(noise)}, so there is nothing to compare")
    try:
        merge.merge_in_place(model)
    except torch.OutOfMemoryError:
        return Proof(MERGED, "not run", "there is no memory for a second copy of one layer")
    scored = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    difference = compare(scored)
    told = f"{difference}, and the adapter changes them by {percent(effect)} (tolerance "
    told += f"{tolerance:.0%} of that, or {NOISE} times the rounding of {percent(noise)})"
    if difference.largest <= max(tolerance * effect, NOISE * noise):
        return Proof(MERGED, "passed", told)
    return Proof(
        MERGED,
        "failed",
        f"{told}. A part of the update is lost in the merged weights: keep the adapter beside "
        "its base, or merge into float32.",
    )
