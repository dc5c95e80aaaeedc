"""The result of a benchmark, and a Markdown table of results: ours, peer, ratio, floor.

Every script has `measure(quick) -> list[Figure]`, and prints its own part of the table when it is
run by itself (`python -m benchmarks.step`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        point: what is measured: "bf16 step", "int8 step", "memory", ...
        what: the quantity, in a few words: "28 layers, extrapolated".
        unit: of `ours`, `peer` and `floor`: "tokens/s", "s", "MiB", ...
        ours: our measurement.
        peer: the same measurement of another library in the same run; None without a peer.
        peer_name: which library that is.
        floor: the best this machine could do, from a rate measured in the same run.
        goal: of `ratio`; None without a goal.
        limit: of `ours`, in its unit, where the goal is not a ratio.
        less_is_better: whether the unit is a cost (seconds, bytes) rather than a rate.
    """

    point: str
    what: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str = ""
    floor: float | None = None
    goal: float | None = None
    limit: float | None = None
    less_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times as good as the peer: above 1 is better, for rates and costs alike."""
        return self._times_as_good_as(self.peer)

    @property
    def share(self) -> float | None:
        """How close to the floor: 1 is the best this machine can do."""
        return self._times_as_good_as(self.floor)

    def _times_as_good_as(self, other: float | None) -> float | None:
        if other is None or not self.ours or not other:
            return None
        return other / self.ours if self.less_is_better else self.ours / other


HEADER = ("", "", "unit", "ours", "peer", "", "ratio", "goal", "floor", "of it")


def table(figures: Iterable[Figure]) -> str:
    """Write figures as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "| --- " * len(HEADER) + "|"]
    for f in figures:
        cells = [f.point, f.what, f.unit, _number(f.ours), _number(f.peer), f.peer_name]
        cells += [_ratio(f.ratio), _goal(f), _number(f.floor), _ratio(f.share)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _goal(figure: Figure) -> str:
    if figure.limit is not None:
        return f"{'at most' if figure.less_is_better else 'at least'} {_number(figure.limit)}"
    return _ratio(figure.goal)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def run(measure: Callable[[bool], list[Figure]], doc: str | None) -> None:
    """The command line that every script has: `--quick`, and its part of the table."""
    import argparse

    from glmtune.train import process_memory

    process_memory.set_defaults()  # as the command does
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller, in seconds")
    print(table(measure(parser.parse_args().quick)))
