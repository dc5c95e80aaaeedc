"""Triton's kernels of 8 bits give what torch gives, in Triton's interpreter, which needs no GPU.

It truncates bfloat16 where a GPU rounds it, so it is float16 and float32 that are compared here. It
rounds float8 wrongly, so there the last cast is torch's.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glmtune.kernels.scaled_linear import FP8, LIMITS, multiply_by_torch, quantize_by_torch

INT8 = torch.int8


@pytest.fixture
def kernels(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("triton_eight_bits")


def quantized(shape: tuple[int, int]) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=INT8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("width", "is_scaled", "is_mixed", "to"),
    [
        (192, False, True, INT8),
        (80, False, True, INT8),  # blocks of 16
        (200, True, False, INT8),
        (192, False, False, FP8),
        (200, True, False, FP8),
        (4224, False, True, INT8),  # more than are in registers at a time
        (4200, True, False, FP8),
    ],
)
def test_rows_are_rounded_as_by_torch(
    kernels: Any, width: int, is_scaled: bool, is_mixed: bool, to: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(5, width) * torch.tensor([1, 1e-3, 30, 1, 0])[:, None]).to(dtype)
    x[3, 7] = 60.0
    scale = torch.rand(width) if is_scaled else None

    kind = INT8 if to == INT8 else torch.float32
    rows, row_scale = kernels.quantize(x, scale, is_mixed=is_mixed, dtype=kind, limit=LIMITS[to])

    expected, expected_scale = quantize_by_torch(x, scale, is_mixed, to)
    torch.testing.assert_close(row_scale, expected_scale)
    found = rows.to(to).float()
    # A number between two may be rounded either way.
    torch.testing.assert_close(found, expected.float(), atol=1 if to == INT8 else 0.002, rtol=0.13)
    assert (found != expected.float()).float().mean() < 0.01
    assert not found[4].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("to", [INT8, FP8])
def test_a_row_with_a_number_that_is_not_finite_has_no_finite_scale(
    kernels: Any, bad: float, to: torch.dtype
) -> None:
    x = torch.ones(3, 64)
    x[1, 5] = bad

    with np.errstate(invalid="ignore"):  # NumPy's, in the interpreter
        _, scale = kernels.quantize(x, None, is_mixed=to == INT8, dtype=to, limit=LIMITS[to])

    assert scale.isfinite().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize("num_rows", [1, 17, 130])  # with tiles of their own
@pytest.mark.parametrize("is_whole", [True, False])
def test_products_are_exact(kernels: Any, num_rows: int, is_whole: bool) -> None:
    torch.manual_seed(0)
    inner = 256 if is_whole else 208
    rows, weight = quantized((num_rows, inner)), quantized((72, inner))
    rows[0], weight[0] = 127, 127
    row_scale, column_scale = torch.rand(num_rows, 1) / 100, torch.rand(72) / 100
    bias = torch.randn(72).half()
    given = (rows, row_scale, weight)

    for rest in ((column_scale, bias, torch.float16), (None, None, torch.float32)):
        torch.testing.assert_close(
            kernels.multiply(*given, *rest), multiply_by_torch(*given, *rest)
        )


def test_a_weight_is_transposed(kernels: Any) -> None:
    weight = quantized((130, 272))

    assert torch.equal(kernels.transpose(weight), weight.T)


def test_no_rows_are_no_kernel(kernels: Any) -> None:
    rows, scale = kernels.quantize(
        torch.zeros(0, 64), None, is_mixed=True, dtype=INT8, limit=LIMITS[INT8]
    )

    y = kernels.multiply(rows, scale, quantized((32, 64)), None, None, torch.float32)

    assert (rows.shape, scale.shape, y.shape) == ((0, 64), (0, 1), (0, 32))


def test_tiles_are_chosen_by_the_rows_and_what_a_block_may_hold(kernels: Any) -> None:
    kibibytes = {"RTX 3090 and 4090": 99, "A100": 163, "H100": 227}

    chosen = {name: kernels.candidates(8192, size << 10) for name, size in kibibytes.items()}

    assert {name: tiles[0].columns for name, tiles in chosen.items()} == {
        "RTX 3090 and 4090": 128,
        "A100": 256,
        "H100": 256,
    }
    assert all(
        tile.shared_bytes <= kibibytes[name] << 10
        for name, tiles in chosen.items()
        for tile in tiles
    )
    assert [len(kernels.candidates(n, 1 << 20)) for n in (1, 16, 17, 128, 129)] == [1, 1, 1, 1, 3]


POINTERS = {
    "x": "*bf16", "y": "*bf16", "bias": "*bf16", "rows": "*i8", "weight": "*i8", "source": "*i8",
    "target": "*i8", "row_scale": "*fp32", "column_scale": "*fp32",
}  # fmt: skip
TILES = {"ROWS": 64, "COLUMNS": 64, "INNER": 64, "GROUP": 8}  # the smallest compile fastest
OF_ROWS = {"LIMIT": 127.0, "SIZE": 64, "BLOCKS": 64, "IS_ROUNDED": True}


IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.slow
@pytest.mark.skipif(not IS_INTERPRETED, reason="the kernels compile in this process")
def test_kernels_compile_in_a_process_that_does_not_interpret_them() -> None:
    """Functions of triton.language that kernels call are interpreted once triton is imported so."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    found = subprocess.run(
        [*command, "-k", "cards_that_are_not_here", "-m", ""],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stdout
    assert "9 passed" in found.stdout


@pytest.mark.skipif(IS_INTERPRETED, reason="the test above runs it in a process of its own")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("_quantize", OF_ROWS | {"IS_SCALED": False, "IS_MIXED": True}),
        ("_quantize", OF_ROWS | {"IS_SCALED": True, "IS_MIXED": False}),
        ("_quantize", OF_ROWS | {"IS_SCALED": True, "IS_MIXED": False, "IS_ROUNDED": False}),
        ("_transpose", {"TILE": 128}),
        ("_multiply", TILES | {"HAS_SCALE": True, "HAS_BIAS": True, "IS_EVEN": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_kernels_compile_for_cards_that_are_not_here(
    kernels: Any, name: str, constants: dict[str, Any], capability: int
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    kernel: Any = JITFunction(getattr(kernels, name).fn)
    types = {each: POINTERS.get(each, "i32") for each in kernel.arg_names}
    if constants.get("IS_ROUNDED") is False:
        if capability < 89:
            pytest.skip("a card of this generation has no float8")
        types["rows"] = "*fp8e4nv"
    types |= dict.fromkeys(constants, "constexpr")
    compiled = triton.compile(
        ASTSource(kernel, types, constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4 if name == "_multiply" else 16},
    )

    product = {80: "mma.sync", 90: "wgmma"}[capability]
    assert (product in compiled.asm["ptx"]) == (
        name == "_multiply" or constants.get("IS_MIXED", False)
    )
