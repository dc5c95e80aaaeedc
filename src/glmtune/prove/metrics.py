"""What is measured, in which unit: JSON lines, a picture, and trackers.

Every line of `metrics.jsonl` has `step` (optimizer steps done) and some of: `loss` (nats per
learned token, the mean since the line before), `eval_loss` (nats per learned token),
`learning_rate`, `grad_norm` (before clipping), `tokens_per_second` (real tokens, padding not
counted), `epoch`, `peak_memory_bytes`, `replayed_rows` (general rows so far), and in float16
`loss_scale` and `skipped_steps` (so far). The last has `general_loss` and `base_general_loss`, nats
per token of general rows after and before. A value that is not finite is never written as a number.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.errors import OutputError
from glmtune.files import explain_write_error, write_atomically


class MetricsFile:
    """`metrics.jsonl`, appended to line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line, so that it is on disk even if the process dies next."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(values))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(explain_write_error(self.path, error)) from error


def cut_metrics(path: Path, step: int) -> None:
    """Keep the lines up to a step, where a run resumes; none for step 0."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_atomically(path, "".join(_line(values) for values in kept))


def _line(values: Mapping[str, Any]) -> str:
    written = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(written, ensure_ascii=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def plot_loss(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw training and held-out loss over steps as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o--")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per learned token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path)
