"""Each figure that is claimed, as a script that prints it beside a peer's: python -m benchmarks."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("glmtune") is None:  # a source tree that is not installed
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
