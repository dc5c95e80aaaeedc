"""The metrics of a run, as JSON lines: `metrics.jsonl` written, truncated for a resume, and read.

Every line has `step` (optimizer steps done) and some of: `loss` (nats per learned token, the mean
since the previous line), `eval_loss` (nats per learned token), `learning_rate`, `grad_norm` (before
clipping), `tokens_per_second` (padding not counted), `epoch`, `peak_memory_bytes`, `replayed_rows`
(general rows so far), `eval_exact` and others of training.eval_metrics, and in float16 `loss_scale`
and `skipped_steps` (so far). The last line has `general_loss` and `base_general_loss`: nats per
token of general rows after and before training. A value that is not finite is written as null,
since JSON has no such number.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.errors import OutputError
from glmtune.files import append_line, write_atomically

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"  # in the output folder
MAX_LINE_BYTES = 2**20
MAX_STEP = 2**53
MAX_NUMBER = 1e100  # far beyond float32, and near enough for the arithmetic of a chart


class MetricsFile:
    """`metrics.jsonl`, appended to line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line and flush it to disk, so that a crash cannot lose it."""
        append_line(self.path, _line(values))


def cut_metrics(path: Path, step: int) -> None:
    """Remove the lines after the step at which a run resumes; all of them for step 0."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_atomically(path, "".join(_line(values) for values in kept))


def _line(values: Mapping[str, Any]) -> str:
    written = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(written, ensure_ascii=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file.

    The last line may be incomplete after an interrupt, and is left out. Any other line that is not
    an object of numbers is left out with a warning: it was edited, or the disk is damaged.

    Raises:
        OutputError: the file cannot be read.
    """
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    waiting = ""  # a complaint, which is dropped if nothing follows
    try:
        with path.open("rb") as file:
            for number, stored in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                if waiting:
                    logger.warning("%s", waiting)
                line, waiting = _parse(stored), ""
                if line is not None:
                    lines.append(line)
                elif stored.strip():
                    waiting = f"{path}:{number}: this is not a line of metrics; it is left out"
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}.") from None
    return lines


def _parse(stored: bytes) -> dict[str, Any] | None:
    """Parse a line: an object of numbers that float64 can hold, or null, by name, with a step."""
    try:
        line = json.loads(stored.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    step = line.get("step")
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        return None
    for name, value in line.items():
        if isinstance(value, float) and not math.isfinite(value):
            line[name] = None
        elif value is not None and (type(value) not in (int, float) or abs(value) > MAX_NUMBER):
            return None
    return line


def until(lines: Sequence[Mapping[str, Any]], step: int | None) -> list[dict[str, Any]]:
    """Return the lines up to a step, to tell what its weights scored; None returns all."""
    return [dict(line) for line in lines if step is None or line["step"] <= step]
