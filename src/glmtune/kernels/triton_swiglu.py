"""SwiGLU in Triton, for GPUs: one kernel forward and one backward, over `[gate | up]` as it is.

    forward     silu(gate) * up                              what torch does in 2 passes
    backward    d gate = d * up * silu'(gate)                and here in 5
                d up   = d * silu(gate)                      written over gate and up

Every intermediate that torch rounds to 16 bits is rounded here, too, so that the numbers are those
of `glmtune.kernels.fused`, up to the exponential's last bit. `glmtune.kernels.fused` chooses it
where a probe works; importing this module needs triton, which torch's wheels for CUDA bring along.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # channels of a row at a time


@triton.jit
def _forward(fused, gated, ffn, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # rows times channels may pass 2**31
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < ffn
    at = fused + row * 2 * ffn + channel
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + ffn, mask=inside, other=0.0).to(tl.float32)
    kind = gated.dtype.element_ty
    silu = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(gated + row * ffn + channel, (silu * up).to(kind), mask=inside)


@triton.jit
def _backward(fused, of_gated, ffn, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < ffn
    at = fused + row * 2 * ffn + channel
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + ffn, mask=inside, other=0.0).to(tl.float32)
    of_y = tl.load(of_gated + row * ffn + channel, mask=inside, other=0.0).to(tl.float32)
    kind = fused.dtype.element_ty
    sigmoid = 1 / (1 + tl.exp(-gate))
    silu = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)
    of_silu = (of_y * up).to(kind).to(tl.float32)
    of_gate = of_silu * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(at, of_gate.to(kind), mask=inside)
    tl.store(at + ffn, (of_y * silu).to(kind), mask=inside)


def _grid(rows: int, ffn: int) -> tuple[int, int]:
    return rows, -(-ffn // BLOCK)


def swiglu(fused: Tensor) -> Tensor:
    """Gate the second half of the channels by SiLU of the first: (rows, 2 * ffn) -> (rows, ffn)."""
    rows, ffn = fused.size(0), fused.size(1) // 2
    gated = fused.new_empty(rows, ffn)
    if gated.numel():
        with torch.cuda.device_of(fused):
            _forward[_grid(rows, ffn)](fused, gated, ffn, BLOCK)
    return gated


def swiglu_backward_(fused: Tensor, of_gated: Tensor) -> None:
    """Write the gradient of (rows, 2 * ffn) over it, from that of (rows, ffn)."""
    rows, ffn = of_gated.shape
    if of_gated.numel():
        with torch.cuda.device_of(fused):
            _backward[_grid(rows, ffn)](fused, of_gated, ffn, BLOCK)
    torch.autograd.graph.increment_version(fused)  # so that nobody takes it for what it was


# For graphs of torch.compile; a call of an operator takes several times as long as a launch.
operator = torch.library.custom_op("glmtune::swiglu", swiglu, mutates_args=())
backward_operator = torch.library.custom_op(
    "glmtune::swiglu_backward_", swiglu_backward_, mutates_args=("fused",)
)


@operator.register_fake
def _(fused: Tensor) -> Tensor:
    return fused.new_empty(fused.size(0), fused.size(1) // 2)
