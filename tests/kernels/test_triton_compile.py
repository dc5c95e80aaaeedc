"""Every kernel compiles for the cards that it is meant for, which needs no such card.

The interpreter runs what the compiler refuses, such as annotations that Triton does not know.
"""

import pkgutil
from collections.abc import Callable
from typing import Any

import pytest

import glmtune.kernels

# The kernels of each module, and the values of their compile-time parameters.
KERNELS: dict[str, dict[str, tuple[dict[str, int], ...]]] = {
    "triton_rotary": {
        "_turn": tuple(
            {
                "QUERIES": 32,
                "KEYS": 2 if grouped else 32,
                "SIZE": 128,
                "ANGLES": 32,
                "IS_GROUPED": grouped,
                "IS_BACKWARD": backward,
                "HEADS": 4,
                "PAIRS": 64,
            }
            for grouped, backward in ((1, 0), (1, 1), (0, 1))
        )
    },
    "triton_swiglu": {"_forward": ({"BLOCK": 1024},), "_backward": ({"BLOCK": 1024},)},
}
POINTERS = ("fused", "gated", "of_gated", "query", "key", "value", "cos", "sin")


def test_no_kernel_is_left_out() -> None:
    modules = {each.name for each in pkgutil.iter_modules(glmtune.kernels.__path__)}

    own = {"triton_decode", "triton_eight_bits"}  # their own tests compile them
    assert {name for name in modules if name.startswith("triton_")} == KERNELS.keys() | own


@pytest.mark.parametrize(
    "capability", [80, 90, *(pytest.param(each, marks=pytest.mark.slow) for each in (75, 86, 89))]
)
@pytest.mark.parametrize("module", KERNELS)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_kernels_compile_in_bfloat16(
    module: str, capability: int, interpreted: Callable[[str], Any]
) -> None:
    made = interpreted(module)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    for name, choices in KERNELS[module].items():
        kernel: Any = JITFunction(getattr(made, name).fn)  # compiles what it is made of
        for constants in choices:
            types = {each: "*bf16" if each in POINTERS else "i32" for each in kernel.arg_names}
            types |= dict.fromkeys(constants, "constexpr")
            rounds_as_torch = module == "triton_rotary"
            code = triton.compile(
                ASTSource(kernel, types, constants),
                target=GPUTarget("cuda", capability, 32),
                options={"enable_fp_fusion": False} if rounds_as_torch else {},
            ).asm["ptx"]
            assert "ld.global" in code
            if rounds_as_torch and capability >= 90:  # before, bfloat16 has nothing else
                assert "fma" not in code
