"""Attention over packs with long examples: those by cuDNN, one by one, the others together.

torch's variable-length kernel is FlashAttention-2. On Hopper, cuDNN's takes about half its time
from 2,048 tokens on, but makes a plan, of a tenth of a second and more, for every new length. So
examples are padded on the right, which causality makes harmless, to one of eight lengths for each
power of two:

    lengths  30 5000 20 40       30 | 5000 + 120 | 20 40      three calls; 12 % of padding at most

Source: https://docs.nvidia.com/deeplearning/cudnn, its scaled dot product attention.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from glmtune.kernels.pack_layout import PackLayout

logger = logging.getLogger(__name__)

LONG = 2048  # tokens of an example
LARGEST_ERROR = 0.02  # of the probe; 16 bits round to 0.004
OLDEST_CAPABILITY = (9, 0)  # Hopper; before it, cuDNN is no faster

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
"""Causal attention of one example: (1, heads, seq, head_dim) of queries, keys and values."""

AttendPack = Callable[[Tensor, Tensor, Tensor, PackLayout], Tensor]
"""Attention over a pack: (1, heads, seq, head_dim) -> (1, seq, heads, head_dim)."""


def by_cudnn(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Call cuDNN, whatever torch would prefer."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )


def takes(layout: PackLayout) -> bool:
    """Whether a pack has an example that is worth a call of its own, and is plainly causal."""
    return layout.longest >= LONG and not any(layout.prefixes)


def attend_with_long(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    *,
    scaling: float | None,
    others: AttendPack,
    attend: Attend = by_cudnn,
) -> Tensor:
    """Attend within each example of a pack, causally.

    Args:
        query: (1, heads, seq, head_dim).
        key, value: (1, kv_heads, seq, head_dim).
        layout: of the pack.
        scaling: multiplies the scores.
        others: attends over the examples between the long ones.
        attend: the kernel for a long one.

    Returns:
        (1, seq, heads, head_dim).
    """
    outputs = []
    for span, part in _parts(layout):
        q, k, v = (each[:, :, span] for each in (query, key, value))
        if part is not None:
            outputs.append(others(q, k, v, part))
            continue
        length = span.stop - span.start
        if (more := padded_length(length) - length) > 0:
            q, k, v = (F.pad(each, (0, 0, 0, more)) for each in (q, k, v))
        outputs.append(attend(q, k, v, scaling)[:, :, :length].transpose(1, 2))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def padded_length(length: int) -> int:
    """Round up to one of eight lengths for each power of two."""
    step: int = 1 << max(0, (length - 1).bit_length() - 4)
    return -(-length // step) * step


def _parts(layout: PackLayout) -> Iterator[tuple[slice, PackLayout | None]]:
    """Where the parts of a pack are: a long example, or a run of others with its own layout."""
    lengths, start = layout.lengths, 0
    numbered = groupby(range(len(lengths)), lambda i: i if lengths[i] >= LONG else -1)
    for number, indices in numbered:
        own = [lengths[index] for index in indices]
        span = slice(start, start + sum(own))
        yield span, None if number >= 0 else layout.part(span, own)
        start = span.stop


def works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel can be used for such queries; asked once per kind, and logged if not."""
    return _why_not(device, dtype, head_dim) is None


@functools.cache
def _why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "it needs a GPU and 16 bits"
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return "it is no faster before compute capability 9.0"
    # Modes of the caller (no gradient, what checkpointing does to saved tensors) are per thread.
    with ThreadPoolExecutor(1) as thread:
        why: str | None = thread.submit(_probe, device, dtype, head_dim).result()
    if why is not None:
        logger.info("long examples attend together with the others on %s: %s", device, why)
    return why


def _probe(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Compare with torch's own operations in float32, and say what went wrong or differed."""
    try:
        expected = _outcome(SDPBackend.MATH, device, head_dim, dtype, torch.float32)
        found = _outcome(SDPBackend.CUDNN_ATTENTION, device, head_dim, dtype, dtype)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return f"cuDNN's attention failed: {(str(error) or repr(error)).splitlines()[0]}"
    for theirs, own in zip(expected, found, strict=True):
        difference = float((own - theirs).norm() / theirs.norm())
        if not difference < LARGEST_ERROR:  # true for NaN too
            return f"cuDNN's attention has a relative error of {difference:.2g}"
    return None


def _outcome(
    backend: SDPBackend,
    device: torch.device,
    head_dim: int,
    rounded: torch.dtype,
    computed: torch.dtype,
) -> list[Tensor]:
    """Output and gradients of a small example, rounded to one dtype and computed in another."""
    numbers = torch.arange(128 * 4 * head_dim, device=device).view(1, 128, 4, head_dim)
    query, key, value = (
        (numbers.transpose(1, 2)[:, :heads] * step).sin().to(rounded).to(computed).requires_grad_()
        for heads, step in ((4, 0.7), (2, 1.1), (2, 1.9))
    )
    with sdpa_kernel(backend):
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    grads = torch.autograd.grad(output.float().square().sum(), (query, key, value))
    return [each.detach().float() for each in (output, *grads)]
