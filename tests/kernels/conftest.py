"""Triton's kernels in its interpreter, which needs no GPU."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def interpreted() -> Callable[[str], Any]:
    """Import a module of kernels, which the interpreter runs from then on."""
    pytest.importorskip(
        "triton", reason="triton is not installed; torch's wheels for CUDA bring it along"
    )

    def load(module: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")  # is looked at where the kernels are defined
            return importlib.import_module(f"glmtune.kernels.{module}")

    return load
