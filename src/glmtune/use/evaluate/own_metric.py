"""A metric of the user's own: `file.py:score`, a function of an answer and its reference.

    def score(answer: str, reference: str) -> float | None: ...

Its file is run, so it must be one that the user trusts, as any script. A row for which it returns
None is not counted.
"""

import importlib.util
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmtune.errors import DataError
from glmtune.use.evaluate.metrics import Metric, Score, of_pair

EXAMPLE = "such as rules.py:score, with `def score(answer, reference): return 100.0`"


def is_own(name: str) -> bool:
    """Whether the name of a metric is that of a function in a file."""
    return ":" in name or name.endswith(".py")


def own_metric(name: str) -> Metric:
    """Load a function from a file as a metric.

    Args:
        name: `file.py:function`.

    Raises:
        DataError: the file cannot be run, or has no such function; later, the function fails or
            returns something else than a number.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not file or not function.isidentifier() or path.suffix != ".py":
        raise DataError(f"{name!r}: expected FILE.py:FUNCTION as a metric, {EXAMPLE}.")
    if not path.is_file():
        raise DataError(f"{file}: there is no such file. A metric of your own is FILE.py:FUNCTION.")
    score = getattr(_run(path), function, None)
    if not callable(score):
        raise DataError(f"{file}: has no function {function!r}. Define it, {EXAMPLE}.")
    return of_pair(f"{path.stem}:{function}", _checked(score, path, function))


def _run(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"glmtune_metric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a script does
        raise DataError(f"{_place(path, error)}: {_shown(error)}. Correct the file.") from error
    return module


def _checked(
    score: Callable[[str, str], Any], path: Path, function: str
) -> Callable[[str, str], Score]:
    def of(answer: str, reference: str) -> Score:
        try:
            value = score(answer, reference)
        except Exception as error:
            raise DataError(
                f"{_place(path, error)}: {function}({answer[:40]!r}, {reference[:40]!r}) raised "
                f"{_shown(error)}. Correct it; the answers are kept."
            ) from error
        if value is None:
            return None
        number = _number(value)
        if number is None:
            raise DataError(
                f"{path}: {function}({answer[:40]!r}, {reference[:40]!r}) returned {value!r:.60}, "
                "expected a finite number, or None for a row that does not count."
            )
        return number

    return of


def _number(value: Any) -> float | None:
    """Return a number, also one of NumPy or torch, as float; None for anything else."""
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _place(path: Path, error: BaseException) -> str:
    """Return the line of the user's file where an error was raised."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _shown(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
