"""The logits of a probe, by which two models are compared number by number."""

from typing import Any

from torch import Tensor

from glmtune.data.batches import MicroBatch


def logits_of(model: Any, probe: MicroBatch) -> Tensor:
    """Score every position of a probe without a cache: (batch, seq, vocab), float32."""
    scores: Tensor = model(**probe.inputs(), use_cache=False).logits
    return scores.float()
