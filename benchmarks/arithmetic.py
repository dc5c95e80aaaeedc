"""Matrix products with frozen half-precision weights: native, widened to float32, and float32.

    python -m benchmarks.arithmetic

Prints GFLOP/s of ChatGLM3-6B's largest layer, medians of interleaved rounds, forward and input
gradient, and the ratio to float32. On a CPU without bfloat16 arithmetic the emulated gradient
takes minutes, so it is measured on fewer rows.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.kernels.half_precision import WideLinear

IN, OUT = 4096, 27392  # dense_h_to_4h
EMULATED_ROWS = 4


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512, help="of activations")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    half = torch.randn(OUT, IN, dtype=torch.bfloat16)
    full = half.float()
    wide = WideLinear(IN, OUT, bias=False, device="meta")
    wide.weight = torch.nn.Parameter(half, requires_grad=False)

    def gradient(product: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
        y = product(x.requires_grad_())
        dy = torch.ones_like(y)
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    x = torch.randn(arguments.rows, IN)
    few = torch.randn(EMULATED_ROWS, IN, dtype=torch.bfloat16)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "float32 forward": (lambda: F.linear(x, full), arguments.rows),
        "widened forward": (lambda: wide(x), arguments.rows),
        "bfloat16 forward": (lambda: F.linear(x.bfloat16(), half), arguments.rows),
        "float32 gradient": (gradient(lambda t: F.linear(t, full), x.clone()), arguments.rows),
        "widened gradient": (gradient(wide, x.clone()), arguments.rows),
        "bfloat16 gradient": (gradient(lambda t: F.linear(t, half), few), EMULATED_ROWS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds + 1):
        for name, (work, _rows) in ways.items():
            times[name].append(seconds(work))
    rates = {
        name: 2 * rows * IN * OUT / 1e9 / statistics.median(times[name][1:])
        for name, (_work, rows) in ways.items()
    }
    for name, rate in rates.items():
        peer = rates[f"float32 {name.split()[1]}"]
        print(f"{name:18} {rate:8.2f} GFLOP/s   {rate / peer:6.3f} of float32")


if __name__ == "__main__":
    main()
