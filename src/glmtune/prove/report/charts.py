r"""The lines of `metrics.jsonl` -> charts: SVG paths for a page and a file, text for a terminal.

A browser stretches the drawing to the available width, so the SVG holds only lines. The tick labels
are HTML text next to it and keep their size.

    0.8 |\__             y ticks: text      curves, grid: SVG in a square of 1000 x 1000
    0.4 |   \____
        +---------       x ticks: text
         0      600
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.recipe.choices import METRIC_NAMES
from glmtune.units import number

SIZE = 1000  # of the square that the paths are in
MAX_LINES = 3000  # of metrics that are drawn; a screen has no more columns
TEXT_WIDTH, TEXT_HEIGHT = 60, 8  # of a curve in a terminal, in characters
TINY = 1e-9  # relative difference of two values that are drawn as one
SMALLEST_STEP = 1e-290  # of an axis; below it powers of ten lose their digits
NUM_COLORS = 8  # of the style sheet
LOG_RANGE = 50  # largest over smallest value, from which on an axis is logarithmic
SMALLEST = 1e-6  # value that a logarithmic curve can show

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at an axis; `at` is its position, 0 to 100 from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: its name in the legend, and its SVG paths.

    Attributes:
        name: for the legend.
        line: the path through all points, with a gap where a value is not finite.
        dots: a path that draws each point, for curves of few points; "" for others.
        color: its number among the curves that were asked for, with or without values, so that a
            run has one color in all charts.
    """

    name: str
    line: str
    dots: str
    color: int = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything a page needs to draw a chart.

    Attributes:
        title, unit: what is drawn.
        summary: the same in one sentence, for screen readers.
        curves: at least one.
        x_ticks, y_ticks: the axes.
        data: JSON for the readout under the pointer: `names`, `steps`, `at` (0 to 100) and
            `values`, for each curve a list of texts, null where it has no value.
        mark: the step whose weights were saved, if it is not the last one.
    """

    title: str
    unit: str
    summary: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    data: str
    mark: Tick | None = None


Series = Mapping[str, Mapping[int, float | None]]
"""By the name of a curve: step -> value; None is a value that was not finite."""


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A chart of the report: what is drawn, the keys of metrics.jsonl, and the scale.

    Attributes:
        title, unit: of the chart.
        names: key -> name in the legend.
        may_be_log: whether the axis is logarithmic where the values span a wide range.
    """

    title: str
    unit: str
    names: Mapping[str, str]
    may_be_log: bool = False


_PER_TOKEN, _PER_PAIR = "nats per learned token", "nats per pair of answers"
_LOSS_NAMES = {"loss": "training", "eval_loss": "held out"}
_REWARDS = (
    _Quantity(
        "Reward margin",
        "better minus worse answer",
        {"reward_margin": "training", "eval_reward_margin": "held out"},
    ),
    _Quantity(
        "Reward accuracy",
        "share of pairs whose better answer has the higher reward",
        {"reward_accuracy": "training", "eval_reward_accuracy": "held out"},
    ),
    _Quantity(
        "Rewards of the answers",
        "in training",
        {"reward_chosen": "better", "reward_rejected": "worse"},
    ),
)
_PERPLEXITY = "perplexity_"  # begins the key of each objective of a pre-training
_MACHINE = (
    _Quantity("Learning rate", "", {"learning_rate": "learning rate"}),
    _Quantity("Gradient norm", "before clipping", {"grad_norm": "gradient norm"}, may_be_log=True),
    _Quantity("Speed", "tokens per second, without padding", {"tokens_per_second": "tokens/s"}),
)


def make_charts(lines: Sequence[Line], saved_step: int | None = None) -> list[Chart]:
    """Make a chart of each quantity that has at least two finite values, the loss first.

    Args:
        lines: of the metrics.
        saved_step: of the weights that were saved, to be marked.
    """
    charts = [loss_chart(lines, saved_step)]
    lines = thin(lines)
    found = sorted({key for line in lines for key in line if key.startswith(_PERPLEXITY)})
    perplexity = _Quantity(
        "Perplexity", "held out", {key: key.removeprefix(_PERPLEXITY) for key in found}, True
    )
    scores = {f"eval_{name}": name for name in METRIC_NAMES if name != "length"}
    measured = {key: name for key, name in scores.items() if any(key in line for line in lines)}
    answers = _Quantity("Held-out answers", "percent", measured)
    for each in (*_REWARDS, perplexity, answers, *_MACHINE):
        series = series_of(lines, each.names)
        charts.append(draw(each.title, each.unit, series, may_be_log=each.may_be_log))
    return [chart for chart in charts if chart is not None]


def loss_chart(lines: Sequence[Line], saved_step: int | None = None) -> Chart | None:
    """Make the chart of training and held-out loss; None with fewer than two finite values."""
    unit = _PER_TOKEN
    if any("reward_margin" in line for line in lines):  # of preferences
        unit = _PER_PAIR
    series = series_of(thin(lines), _LOSS_NAMES)
    return draw("Loss", unit, series, may_be_log=True, saved_step=saved_step)


def series_of(lines: Sequence[Line], names: Mapping[str, str]) -> Series:
    """Collect the values of some keys of the metrics by the names of their curves."""
    return {
        name: {line["step"]: line[key] for line in lines if key in line}
        for key, name in names.items()
    }


def thin(lines: Sequence[Line], limit: int = MAX_LINES) -> list[Line]:
    """Keep about `limit` lines: of each group of neighbors the highest loss, so peaks survive.

    Lines with a held-out loss, the first and the last are always kept.
    """
    if len(lines) <= limit:
        return list(lines)
    size = math.ceil(len(lines) / limit)
    kept = {0, len(lines) - 1}
    kept |= {index for index, line in enumerate(lines) if line.get("eval_loss") is not None}
    for start in range(0, len(lines), size):
        group = range(start, min(start + size, len(lines)))
        kept.add(max(group, key=lambda index: _loss_or_infinity(lines[index])))
    return [lines[index] for index in sorted(kept)]


def _loss_or_infinity(line: Line) -> float:
    loss: float | None = line.get("loss", -math.inf)
    return math.inf if loss is None else float(loss)  # None was not finite: nothing is higher


def text_curve(values: Sequence[float]) -> Iterator[str]:
    """Draw a curve for a terminal, on a logarithmic scale with its highest and lowest value.

    Args:
        values: at least one; those below `SMALLEST` are drawn as that.

    Yields:
        The lines, from the top.
    """
    width = min(TEXT_WIDTH, len(values))
    sampled = [values[index * (len(values) - 1) // max(width - 1, 1)] for index in range(width)]
    logs = [math.log(max(value, SMALLEST)) for value in sampled]
    low, high = min(logs), max(logs)
    eighths = 8 * TEXT_HEIGHT  # a character shows a bar in eighths of its height
    heights = [round((value - low) / ((high - low) or 1) * (eighths - 1)) + 1 for value in logs]
    labels = {TEXT_HEIGHT - 1: f"{math.exp(high):.3f}", 0: f"{math.exp(low):.3f}"}
    for row in reversed(range(TEXT_HEIGHT)):
        bars = "".join(" ▁▂▃▄▅▆▇█"[max(0, min(8, height - 8 * row))] for height in heights)
        yield f"{labels.get(row, ''):>8} |{bars}"


def draw(
    title: str,
    unit: str,
    series: Series,
    *,
    may_be_log: bool = False,
    saved_step: int | None = None,
) -> Chart | None:
    """Draw some curves over their steps; None with fewer than two finite values.

    Args:
        title, unit: what is drawn.
        series: the curves; those without values are left out.
        may_be_log: use a logarithmic axis where the values span a wide range.
        saved_step: a step to mark, unless it is the last one.
    """
    colors = {name: index % NUM_COLORS for index, name in enumerate(series)}
    series = {name: points for name, points in series.items() if points}
    finite = [y for points in series.values() for y in points.values() if y is not None]
    steps: list[int] = sorted({step for points in series.values() for step in points})
    if len(finite) < 2 or len(steps) < 2:
        return None
    is_log = may_be_log and min(finite) > SMALLEST_STEP and max(finite) >= LOG_RANGE * min(finite)
    scale = math.log10 if is_log else float
    low, high, y_ticks = (_log_axis if is_log else _round_axis)(min(finite), max(finite))
    first, last = steps[0], steps[-1]

    def x(step: int) -> float:
        return (step - first) / (last - first)

    def y(value: float) -> float:
        return (scale(high) - scale(value)) / (scale(high) - scale(low))

    curves = []
    for name, points in series.items():
        placed = [(x(s), None if v is None else y(v)) for s, v in points.items()]
        dots = _dot_path(placed) if len(placed) <= 60 else ""
        curves.append(Curve(name, _line_path(placed), dots, colors[name]))
    data = {
        "names": list(series),
        "steps": steps,
        "at": [round(100 * x(step), 2) for step in steps],
        "values": [[_value_text(points, step) for step in steps] for points in series.values()],
    }
    mark = None
    if saved_step is not None and first <= saved_step < last:
        mark = Tick(round(100 * x(saved_step), 2), f"saved: step {saved_step:,}")
    unit = ", ".join(filter(None, (unit, "logarithmic" if is_log else "")))
    return Chart(
        title=title,
        unit=unit,
        summary=_summary(title, unit, series),
        curves=tuple(curves),
        x_ticks=tuple(
            Tick(round(100 * x(step), 2), f"{step:,}") for step in _step_ticks(first, last)
        ),
        y_ticks=tuple(Tick(round(100 * y(value), 2), number(value)) for value in y_ticks),
        data=json.dumps(data),
        mark=mark,
    )


def _value_text(points: Mapping[int, float | None], step: int) -> str | None:
    if step not in points:
        return None
    value = points[step]
    return "not finite" if value is None else number(value)


def _summary(title: str, unit: str, series: Mapping[str, Mapping[int, float | None]]) -> str:
    parts = []
    for name, points in series.items():
        finite = [(step, value) for step, value in points.items() if value is not None]
        if finite:
            (first, begin), (last, end) = finite[0], finite[-1]
            parts.append(
                f"{name} from {number(begin)} at step {first:,} to {number(end)} at step {last:,}"
            )
    return f"{title}{f' in {unit}' if unit else ''}: {'; '.join(parts)}."


def _line_path(points: Sequence[tuple[float, float | None]]) -> str:
    parts, is_drawing = [], False
    for x, y in points:
        if y is None:
            is_drawing = False
            continue
        parts.append(f"{'L' if is_drawing else 'M'}{x * SIZE:.1f} {y * SIZE:.1f}")
        is_drawing = True
    return "".join(parts)


def _dot_path(points: Sequence[tuple[float, float | None]]) -> str:
    """Draw lines of length 0: round line caps make them dots, even in a stretched drawing."""
    return "".join(f"M{x * SIZE:.1f} {y * SIZE:.1f}h0" for x, y in points if y is not None)


def _round_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Choose round numbers that enclose the values; from 0 where the values come near it."""
    if 0 <= low < high / 2:
        low = 0.0
    if high - low <= TINY * max(abs(low), abs(high)):  # no ticks fit between them
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [float(f"{index * step:.12g}") for index in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _log_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Choose powers of ten, or 1, 2 and 5 times such a power, that enclose positive values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = max(1, math.ceil((last - first) / 6))
    ticks = [
        float(f"{factor * 10.0**power:.12g}")
        for power in range(first, last + 1)
        if (power - first) % every == 0
        for factor in factors
    ]
    low_end = max((tick for tick in ticks if tick <= low), default=low)
    high_end = min((tick for tick in ticks if tick >= high), default=high)
    return low_end, high_end, [tick for tick in ticks if low_end <= tick <= high_end]


def _round_step(rough: float) -> float:
    scale: float = 10.0 ** math.floor(math.log10(max(rough, SMALLEST_STEP)))
    return next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)


def _step_ticks(first: int, last: int) -> list[int]:
    step = max(1, round(_round_step((last - first) / 4)))
    inner = range(math.ceil(first / step) * step, last + 1, step)
    ends = {first, last}
    # A number too close to an end would overlap its label.
    return sorted(
        ends | {s for s in inner if all(abs(s - end) > (last - first) / 8 for end in ends)}
    )
