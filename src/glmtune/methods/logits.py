"""Compare the logits of two models."""

from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.data.batches import MicroBatch
from glmtune.errors import TrainingError


def compare_logits(folder: Path, gives: str, trained: Tensor, saved: Tensor) -> float:
    """Give the largest difference between two logits.

    Args:
        folder: that was read.
        gives: what it holds, and a verb.
        trained: logits of the trained model.
        saved: logits of what was read, of the same shape.

    Raises:
        TrainingError: the logits differ.
    """
    difference = (trained - saved).abs().max().item()
    if difference != 0:  # NaN is no proof either
        raise TrainingError(
            f"{folder}: reloaded from disk {gives} other logits (by {difference:.3g}). "
            "The file is not what was trained; keep the last checkpoint and report this."
        )
    return difference


def logits_of(model: Any, probe: MicroBatch) -> Tensor:
    """Score every position of a probe: (batch, seq, vocab), float32."""
    scores: Tensor = model(**probe.inputs(), use_cache=False).logits
    return scores.float()
