"""Merge an adapter into its base, to a new plain model or in place."""

from typing import Any

from glmtune.errors import CheckpointError
from glmtune.kernels.fp8 import Fp8Linear
from glmtune.kernels.int8 import Int8Linear
from glmtune.methods.pissa import as_plain_lora


def merge(model: Any) -> Any:
    """Add the adapter's update into the base weights; the result is a plain model.

    Raises:
        CheckpointError: the base is quantized, so that most of the update would be lost; or
            virtual tokens or a prefix were trained, which are not part of a weight.
    """
    if not hasattr(model, "merge_and_unload"):
        raise CheckpointError(
            "virtual tokens before every text were trained, which cannot be merged into weights. "
            "Use the adapter together with its base."
        )
    if _is_packed(model):
        raise CheckpointError(
            "the base is quantized, and adding the update to so few bits would lose most of it. "
            "Load the base in half precision, then the adapter, and merge those."
        )
    with as_plain_lora(model):
        return model.merge_and_unload(safe_merge=True)


def _is_packed(model: Any) -> bool:
    is_packed = any(isinstance(module, Int8Linear | Fp8Linear) for module in model.modules())
    return is_packed or getattr(model, "is_quantized", False)


def can_merge(model: Any) -> bool:
    """Whether the update can be added into the base: not if that is quantized, nor a prefix."""
    return hasattr(model, "merge_adapter") and not _is_packed(model)


def merge_in_place(model: Any) -> None:
    """Add the update into the base weights layer by layer, and keep the adapter beside them.

    At most one layer's weight is in memory twice. In half precision this cannot be undone
    exactly, so it comes after everything else that needs the base.
    """
    with as_plain_lora(model):
        model.merge_adapter(safe_merge=True)
