"""Measurements of micro-batches, which stay on the device until somebody reads them.

To read a number of a GPU, the host has to wait until the GPU has done all earlier work.
"""

import torch
from torch import Tensor


class Measurements:
    """A few numbers per micro-batch."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def note(self, *values: Tensor) -> None:
        """Note the scalars of a micro-batch, in float32, without waiting for the device."""
        self._rows.append(torch.stack([value.detach().float() for value in values]))

    def take(self) -> list[list[float]]:
        """Read what was noted since the last time: a list for each micro-batch."""
        read: list[list[float]] = torch.stack(self._rows).tolist() if self._rows else []
        self._rows.clear()
        return read
