"""What tests share: the reference vectors where they are, and tiny things made on the spot."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and real rows, which is not part of the project."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"the reference vectors are not in this checkout (looked in {SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Vectors made by the original code."""
    return shared / "golden"
