"""The metrics of a run, as JSON lines: `metrics.jsonl` written, truncated for a resume, and read.

Every line has `step` (optimizer steps done) and some of: `loss` (nats per learned token, the mean
since the previous line), `eval_loss` (nats per learned token), `learning_rate`, `grad_norm` (before
clipping), `tokens_per_second` (padding not counted), `epoch`, `peak_memory_bytes`, `replayed_rows`
(general rows so far), and in float16 `loss_scale` and `skipped_steps` (so far). The last line has
`general_loss` and `base_general_loss`: nats per token of general rows after and before training. A
value that is not finite is written as null, since JSON has no such number.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.files import append_line, write_atomically

METRICS = "metrics.jsonl"  # in the output folder


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
    """Read the lines of a metrics file, up to one that an interrupt left incomplete."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def until(lines: Sequence[Mapping[str, Any]], step: int | None) -> list[dict[str, Any]]:
    """Return the lines up to a step, to tell what its weights scored; None returns all."""
    return [dict(line) for line in lines if step is None or line["step"] <= step]
