"""Proof that the merged model answers as the model with its adapter does.

    effect       scores of the trained model - scores of the base
    noise        scores streamed with a cache - scores in one pass, of the same weights
    difference   scores of the merged model - scores of the trained model

In half precision a merged weight loses the small part of an update, so the difference is compared
with the effect. Where rounding is about as large as the effect, there is nothing to compare.
"""

from collections.abc import Sequence
from typing import Any

import torch

from glmtune.methods import method
from glmtune.prove.proof import MERGED, Proof
from glmtune.prove.streamed import Probe, compare, percent, score_answer
from glmtune.use.export import merge

ALLOWED_ROUNDINGS = 3  # largest difference, in multiples of the measured rounding noise


def check_merged(model: Any, probes: Sequence[Probe], tolerance: float) -> Proof:
    """Merge the adapter into the base, layer by layer, and score the probes again.

    Only the merged model remains afterwards, so this is the last proof.

    Args:
        model: the trained peft model.
        probes: made with it before.
        tolerance: of the difference, as a share of what the adapter changes.
    """
    if not method.is_adapted(model):
        return Proof(
            MERGED, "not run", "the model itself was trained, so there is nothing to merge"
        )
    if not merge.can_merge(model):
        return Proof(
            MERGED, "not run", "this kind of adapter, or a quantized base, cannot be merged"
        )
    with model.disable_adapter():
        base = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    effect = compare(base).largest
    noise = compare([(each.streamed, each.trained) for each in probes]).largest
    if not effect > ALLOWED_ROUNDINGS * noise:
        return Proof(
            MERGED,
            "not run",
            f"the adapter changes scores by {percent(effect)} of their spread, and rounding by "
            f"{percent(noise)}, so there is nothing to compare",
        )
    try:
        merge.merge_in_place(model)
    except torch.OutOfMemoryError:
        return Proof(MERGED, "not run", "there is not enough memory for a second copy of one layer")
    scored = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    difference = compare(scored)
    measured = (
        f"{difference}, and the adapter changes them by {percent(effect)} (tolerance "
        f"{tolerance:.0%} of that, or {ALLOWED_ROUNDINGS} times the rounding of {percent(noise)})"
    )
    if difference.largest <= max(tolerance * effect, ALLOWED_ROUNDINGS * noise):
        return Proof(MERGED, "passed", measured)
    return Proof(
        MERGED,
        "failed",
        f"{measured}. A part of the update is lost in the merged weights: keep the adapter "
        "separate, or merge into float32.",
    )
