"""Quantize a GGUF to 2 to 6 bits a number, with llama.cpp's own function.

The package llama-cpp-python calls it; the file that it reads has 16 or 32 bits a number. Matrices
whose rows are no multiple of 256 get a type with smaller blocks, as llama.cpp decides.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glmtune.errors import OutputError, RecipeError

KINDS = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"),
    *("q4_0", "q5_0", "iq4_nl", "iq4_xs"),
)
# The largest error of a tensor, as a share of its norm, by the type that its blocks have.
LARGEST_ERROR = {
    "q2_k": 0.6,
    "q3_k": 0.35,
    **dict.fromkeys(("q4_k", "q4_0", "q4_1", "iq4_nl", "iq4_xs"), 0.2),
    **dict.fromkeys(("q5_k", "q5_0", "q5_1"), 0.1),
    "q6_k": 0.06,
}


def is_k_quant(kind: str) -> bool:
    """Whether a type is one that llama.cpp's function makes, and the library gguf does not."""
    return kind.lower() in KINDS


def check_installed(kind: str) -> None:
    """Refuse a type that needs a package which is missing.

    Raises:
        RecipeError: says how to install it, and the way without it.
    """
    if find_spec("llama_cpp") is None:
        raise RecipeError(
            f"--quantize {kind} needs the package llama-cpp-python, which is not installed. Run "
            "`pip install llama-cpp-python` (it compiles for some minutes), or write f16, then run "
            f"llama.cpp's own tool on it: llama-quantize model.gguf small.gguf {kind.upper()}."
        )


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantize a GGUF.

    Args:
        source: with 16 or 32 bits a number.
        target: to write.
        kind: of `KINDS`.

    Raises:
        OutputError: llama.cpp cannot write it.
        RecipeError: the package is missing.
    """
    check_installed(kind)
    import ctypes

    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # it loads a compiled library
        raise RecipeError(
            f"llama-cpp-python is installed but cannot be loaded: {error}. Install it again, or "
            "write f16."
        ) from error

    library: Any = llama_cpp
    params = library.llama_model_quantize_default_params()
    params.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    code = library.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if code != 0 or not target.is_file():
        raise OutputError(
            f"{target}: llama.cpp could not quantize to {kind} (code {code}). Check the free space "
            "of the disk, or write f16."
        )
