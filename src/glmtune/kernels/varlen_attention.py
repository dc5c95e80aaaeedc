"""Attention over packs by torch's variable-length kernel, in one call for all examples.

It needs 16 bits, and a GPU of compute capability 8.0 or later (Ampere); whether it works is tried
once. Its kernel lets several query heads share a key. torch 2.12 and later want this said by an
argument; before, the heads are simply fewer, and keys are repeated only where a trial with fewer of
them gives other numbers.

Source: torch.nn.attention.varlen; its kernel is FlashAttention-2, https://arxiv.org/abs/2307.08691.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from glmtune.kernels.pack_layout import PackLayout, VarlenCall

logger = logging.getLogger(__name__)

OLDEST_CAPABILITY = (8, 0)
LARGEST_HEAD = 256  # channels, a multiple of 8

Varlen = Callable[[Tensor, Tensor, Tensor, VarlenCall, float | None, tuple[int, int]], Tensor]
"""(query, key, value, call, scaling, window) -> output; all tensors are (tokens, heads, head_dim).

A window of (w, 0) is causal and sees w tokens back, -1 for all; (-1, -1) sees everything."""


@functools.cache
def _torch_varlen() -> Callable[..., Any] | None:
    """Return torch's function, if this torch has it with the arguments that are used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "scale"} <= names.keys() else None


@functools.cache
def _takes_gqa_argument() -> bool:
    found = _torch_varlen()
    return found is not None and "enable_gqa" in inspect.signature(found).parameters


@functools.cache
def _takes_fewer_keys(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether two query heads and one key give what they give with the key repeated."""
    query = torch.linspace(-1, 1, 5 * 2 * 64, device=device).to(dtype).view(5, 2, 64)
    key = query[:, :1].flip(0).contiguous()
    ends = torch.tensor([0, 3, 5], dtype=torch.int32, device=device)
    attend = _torch_varlen()
    assert attend is not None
    found = []
    try:
        for repeats in (2, 1):
            given = [each.clone().requires_grad_() for each in (query, key, key)]
            keys = (each.repeat_interleave(repeats, dim=1) for each in given[1:])
            with torch.enable_grad():
                output = attend(given[0], *keys, ends, ends, 3, 3, window_size=(-1, 0))
                found.append([output, *torch.autograd.grad(output.square().sum(), given)])
        torch.testing.assert_close(found[1], found[0], atol=0.02, rtol=0.02)
    except (RuntimeError, ValueError, TypeError, AssertionError):
        return False
    return True


def by_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: VarlenCall,
    scaling: float | None,
    window: tuple[int, int],
) -> Tensor:
    """Call torch's kernel."""
    attend = _torch_varlen()
    assert attend is not None  # `works` has been asked
    repeats = query.size(1) // key.size(1)
    given: dict[str, Any] = {"scale": scaling, "window_size": window}
    if repeats > 1 and _takes_gqa_argument():
        given["enable_gqa"] = True
    elif repeats > 1 and not _takes_fewer_keys(query.device, query.dtype):
        key, value = (each.repeat_interleave(repeats, dim=1) for each in (key, value))
    ends, longest = (call.query_ends, call.key_ends), (call.longest_query, call.longest_key)
    output: Tensor = attend(query, key, value, *ends, *longest, **given)
    return output


def attend_by_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    *,
    scaling: float | None,
    virtual: tuple[Tensor, Tensor] | None = None,
    window: int | None = None,
    varlen: Varlen = by_torch,
) -> Tensor:
    """Attend within each example of a pack.

    Args:
        query: (1, heads, seq, head_dim); views are fine, if the last dimension is contiguous.
        key, value: (1, kv_heads, seq, head_dim).
        layout: of the pack.
        scaling: multiplies the scores.
        virtual: keys and values in front of every example, (1, kv_heads, number, head_dim).
        window: how many tokens one attends to at most, itself included; None is all earlier ones.
        varlen: the kernel.

    Returns:
        (1, seq, heads, head_dim).
    """
    # Unlike `[0]`, `squeeze` copies no gradient.
    query, key, value = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))
    number = 0
    if virtual is not None:
        number = virtual[0].size(2)
        key, value = (
            torch.cat((first.squeeze(0).transpose(0, 1).to(own.dtype), own))
            for first, own in zip(virtual, (key, value), strict=True)
        )
    width = query.size(1) * query.size(2)
    calls, places = layout.varlen_calls(query.device, number, width)
    back = -1 if window is None else window - 1
    outputs = [
        varlen(
            _taken(query, call.queries),
            _taken(key, call.keys),
            _taken(value, call.keys),
            call,
            scaling,
            (back, 0) if call.is_causal else (-1, -1),
        )
        for call in calls
    ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (output if places is None else output[places])[None]


def _taken(x: Tensor, which: slice | Tensor) -> Tensor:
    """Take rows of a tensor; all of them without the copy of the gradient that slicing makes."""
    is_all = isinstance(which, slice) and (which.start, which.stop) == (0, len(x))
    return x if is_all else x[which]


def works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel can be used for such queries; asked once per kind, and logged if not."""
    return _why_not(device, dtype, head_dim) is None


@functools.cache
def _why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    why = _find_obstacle(device, dtype, head_dim)
    if why is not None:
        logger.info("attention over packs uses one call per length on %s: %s", device, why)
    return why


def _find_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Say why the kernel cannot be used; None if it has worked."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"torch's variable-length attention needs 16 bits, and these are {dtype}"
    if head_dim % 8 or head_dim > LARGEST_HEAD:
        return f"it needs heads of a multiple of 8 and at most {LARGEST_HEAD}, not {head_dim}"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY:
            return "variable-length attention needs compute capability 8.0, not {}.{}".format(
                *capability
            )
    if _torch_varlen() is None:
        return f"torch {torch.__version__} has no variable-length attention with a window"
    # Modes of the caller (no gradient, what checkpointing does to saved tensors) are per thread.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_probe, device, dtype, head_dim).result()


def _probe(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Attend forward and backward over two tiny examples, and say what went wrong."""
    query = torch.zeros(1, 2, 5, head_dim, dtype=dtype, device=device, requires_grad=True)
    key = torch.zeros(1, 1, 5, head_dim, dtype=dtype, device=device)
    try:
        output = attend_by_varlen(query, key, key, PackLayout([3, 2]), scaling=None)
        torch.autograd.grad(output.sum(), query)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return f"variable-length attention failed: {(str(error) or repr(error)).splitlines()[0]}"
    return None
