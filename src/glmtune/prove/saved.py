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
        TrainingError: the logits, or tensors, differ.
        CheckpointError: a tensor is missing on disk, or unexpected.
    """
    method = method_of(model)
    model.eval()
    model.zero_grad(set_to_none=True)  # frees memory for the second model
    trained = logits_of(model, probe)
    with method.as_saved(model, folder) as saved:
        difference = (trained - logits_of(saved, probe)).abs().max().item()
    if difference != 0:  # true for NaN too
        raise TrainingError(
            f"{folder}: the logits of the saved {method.what} differ from those of the trained "
            f"{method.what} (by {difference:.3g}). The file is not what was trained; keep the "
            "last checkpoint and report this."
        )
    method.check_tensors(model, folder)
    return difference


def logits_of(model: Any, probe: MicroBatch) -> Tensor:
    """Score every position of a probe without a cache: (batch, seq, vocab), float32."""
    scores: Tensor = model(**probe.inputs(), use_cache=False).logits
    return scores.float()
