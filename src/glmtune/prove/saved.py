"""Proof that what was saved is what was trained, to the last bit of a score.

    in memory    model -> logits of a probe
    on disk      folder -> loaded over the same base, as a user would -> logits of the same probe

Equal logits alone could hide a tensor that does not contribute to these logits, so a method may
compare its tensors as well (`Method.check_tensors`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.data.batches import MicroBatch
from glmtune.errors import TrainingError
from glmtune.methods.method import method_of


@torch.no_grad()
def check_saved(model: Any, folder: Path, probe: MicroBatch) -> float:
    """Prove that what is on disk is what is in memory, by the logits of a probe.

    Args:
        model: that was trained; afterwards in evaluation mode and without gradients.
        folder: where it was saved.
        probe: any rows.

    Returns:
        The largest difference between two logits, which is 0.0.

    Raises:
        TrainingError: the logits, or tensors, differ, or the model's own logits vary.
        CheckpointError: a tensor is missing on disk, or unexpected.
    """
    method = method_of(model)
    model.eval()
    model.zero_grad(set_to_none=True)  # frees memory for the second model
    trained = logits_of(model, probe)
    with method.as_saved(model, folder) as saved:
        difference = (trained - logits_of(saved, probe)).abs().max().item()
    if difference != 0:  # true for NaN too
        _check_repeatable(model, trained, probe)
        raise TrainingError(
            f"{folder}: the logits of the saved {method.what} differ from those of the trained "
            f"{method.what} (by {difference:.3g}). The file is not what was trained; keep the "
            "last checkpoint and report this."
        )
    method.check_tensors(model, folder)
    return difference


def _check_repeatable(model: Any, first: Tensor, probe: MicroBatch) -> None:
    """Blame the model rather than the file where it scores the same probe differently each time.

    Raises:
        TrainingError: it does.
    """
    difference = (first - logits_of(model, probe)).abs().max().item()
    if difference > 0:
        raise TrainingError(
            "the trained model scores the same rows differently each time (by "
            f"{difference:.3g}), in evaluation: a layer still drops out, or draws random numbers. "
            "So neither its held-out loss nor its answers can be trusted. Set the dropouts of the "
            "recipe and of the model's config.json to 0, or correct the layer's eval()."
        )


def logits_of(model: Any, probe: MicroBatch) -> Tensor:
    """Score every position of a probe without a cache: (batch, seq, vocab), float32."""
    scores: Tensor = model(**probe.inputs(), use_cache=False).logits
    return scores.float()
