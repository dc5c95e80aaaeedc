"""Mix channels in blocks of up to 64, which spreads an outlier over its block.

An outlier channel sets the scale of its row and leaves the others little precision. A Hadamard
matrix H of 1 and -1 mixes them without changing a product: (x @ H) @ (W @ H / 64).T is x @ W.T,
since H is its own transpose and its square is 64 times the identity.

Source: Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456. docs/performance.md has what was
measured.
"""

import functools

import torch
from torch import Tensor

BLOCK = 64  # the most channels that are mixed with each other


def block_size(width: int) -> int:
    """How many channels are mixed with each other: a power of 2 that divides `width`."""
    return min(BLOCK, width & -width)


def hadamard(size: int) -> Tensor:
    """Make Sylvester's Hadamard matrix of 1 and -1, (size, size).

    It is symmetric, its square is `size` times the identity, and its upper left corner is the
    smaller one.
    """
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


HADAMARD = hadamard(BLOCK)  # built at import: under FakeTensorMode it would hold no data


@functools.cache
def _on_gpu(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Keep a copy on the device: to copy it there in each call would wait for the device."""
    return HADAMARD[:size, :size].to(device, dtype)


def rotate(x: Tensor) -> Tensor:
    """Mix the channels of (..., channels) in blocks."""
    size = block_size(x.size(-1))
    if x.device.type == "cuda":
        matrix = _on_gpu(size, x.device, x.dtype)
    else:
        matrix = HADAMARD[:size, :size].to(x.dtype)
    blocks = x.reshape(-1, size) @ matrix
    return blocks.view(x.shape)
