"""Find numbers that are not finite, in one pass over tensors that are read anyway.

The sum of a tensor is finite unless one of its numbers is not, or it overflows, which a second look
tells apart. So each number is read once and nothing is allocated.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from glmtune.errors import CheckpointError


def check_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold a number that is not finite.

    Args:
        name: of the file or model, for the message.
        tensors: by name; those that are not floating point are skipped.

    Raises:
        CheckpointError: names the tensor.
    """
    for tensor_name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.device.type == "meta":
            continue
        total = tensor.detach().sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
        if not torch.isfinite(total) and not torch.isfinite(tensor).all():
            number = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{name}: {tensor_name} holds {number:,} of {tensor.numel():,} numbers that are "
                "not finite (NaN or infinity), so every answer would be wrong. The file is "
                "damaged, or the training that made it diverged. Use an earlier checkpoint, or "
                "copy the file again."
            )
