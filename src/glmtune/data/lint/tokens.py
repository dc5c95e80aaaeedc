"""Checks of one row's ids: does every learned answer end with a stop token, was it cut.

input_ids   64790 64792 64795 ... 64796 30910 13 36474 54591 2
labels        -     -     -         -   30910 13 36474 54591 2     2 is the stop token
cut at 9      -     -     -         -   30910 13 36474             there is none
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from glmtune.conversation import Conversation
from glmtune.data.fit import Fate, describe_fate
from glmtune.data.lint.findings import Fault
from glmtune.data.lint.texts import answers_of
from glmtune.template.base import IGNORE, Example, is_learned

PERCENTILES = (50, 90, 95, 99, 100)
MOST_INTERVALS = 20  # of a histogram
_WIDTHS = tuple(factor * 10**power for power in range(18) for factor in (1, 2, 5))


@dataclass(frozen=True, slots=True)
class LengthCost:
    """What one limit would cost.

    Attributes:
        max_length: the limit.
        num_overlong: rows above it.
        lost_if_dropped: tokens of those rows, which `drop` loses.
        lost_if_cut: tokens after the limit, which `tutorial` loses.
    """

    max_length: int
    num_overlong: int
    lost_if_dropped: int
    lost_if_cut: int


class Lengths:
    """How long the rows are.

    Attributes:
        unit: of all numbers; characters if there is no tokenizer.
        values: of each row, int64, (rows,).
        limit: data.max_length, or None if the unit is not tokens.
    """

    def __init__(
        self, values: Sequence[int], unit: Literal["tokens", "characters"], limit: int | None
    ) -> None:
        self.unit = unit
        self.values: npt.NDArray[np.int64] = np.asarray(values, dtype=np.int64)
        self.limit = limit

    @property
    def total(self) -> int:
        """The sum over all rows."""
        return int(self.values.sum())

    def percentiles(self) -> dict[int, int]:
        """Return each share of `PERCENTILES` with the length that so many rows do not exceed."""
        if not len(self.values):
            return {}
        # Never between two rows: a limit at the 99th percentile keeps 99 % of them.
        found = np.percentile(self.values, PERCENTILES, method="inverted_cdf")
        return {share: int(length) for share, length in zip(PERCENTILES, found, strict=True)}

    def histogram(self) -> list[tuple[int, int]]:
        """Return the largest length of each interval, and how many rows are in it.

        Intervals are equally wide, by a round number, from the shortest row to the longest.
        """
        if not len(self.values):
            return []
        low, high = int(self.values.min()), int(self.values.max())
        width = next(width for width in _WIDTHS if (high - low) // width < MOST_INTERVALS)
        first, last = low // width, high // width
        counts = np.bincount(self.values // width - first, minlength=last - first + 1)
        return [
            ((first + index + 1) * width - 1, count) for index, count in enumerate(counts.tolist())
        ]

    def costs(self) -> list[LengthCost]:
        """Return the costs of powers of two, and of the limit of the recipe."""
        longest = int(self.values.max(initial=0))
        if not longest:
            return []
        limits = [1 << power for power in range(6, longest.bit_length() + 1)]
        wanted = {limit for limit in limits if self.values.min() < limit < longest}
        wanted.add(next((limit for limit in limits if limit >= longest), 64))
        return [self.cost(limit) for limit in sorted(wanted | {self.limit or longest})]

    def cost(self, max_length: int) -> LengthCost:
        """Return the cost of one limit."""
        overlong = self.values[self.values > max_length]
        return LengthCost(
            max_length,
            num_overlong=len(overlong),
            lost_if_dropped=int(overlong.sum()),
            lost_if_cut=int(overlong.sum()) - len(overlong) * max_length,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single values, as JSON."""
        return {
            "unit": self.unit,
            "limit": self.limit,
            "rows": len(self.values),
            "total": self.total,
            "percentiles": self.percentiles(),
            "histogram": self.histogram(),
            "costs": [
                {name: getattr(cost, name) for name in LengthCost.__slots__}
                for cost in self.costs()
            ],
        }


def find_token_faults(
    conversation: Conversation,
    example: Example,
    fitted: Example | None,
    fate: Fate,
    max_length: int,
    stop_ids: Sequence[int],
) -> Iterator[tuple[str, Fault]]:
    """Find what training would do to a row that its author may not expect; check id and fault.

    Args:
        conversation: the row.
        example: the encoded row, uncut.
        fitted: what training makes of the example, None if it leaves it out.
        fate: how it came to that; both are from `fit`.
        max_length: in tokens.
        stop_ids: of the template.
    """
    length, end = len(example.input_ids), _end_of_answer(conversation)
    what = describe_fate(fate, length, max_length)
    if fate is Fate.OVERLONG:
        yield "length", Fault("warning", what, end)
    elif fate is Fate.SHORTENED:
        yield "length", Fault("info", what, end)
    elif fate is Fate.WITHOUT_LABELS and any(map(is_learned, conversation)):
        yield "no-label", Fault("warning", what, end)
    if fitted is None:
        return
    lost = _num_learned(example) - _num_learned(fitted)
    if fate is Fate.CUT and lost:
        yield "cut-answer", Fault("warning", f"{what}: {lost:,} learned tokens are lost", end)
    elif fate is Fate.CUT:
        yield "length", Fault("info", f"{what}: no learned token is lost", end)
    for stop in ends_without_stop(fitted, stop_ids)[:1]:
        is_cut = stop == max_length < length  # as data.overlong=tutorial asks for
        why = f", where data.max_length {max_length:,} cuts it off" if is_cut else ""
        message = f"the answer ends after token {stop:,} without a stop token{why}"
        yield "no-stop", Fault("warning" if is_cut else "error", message, end)


def ends_without_stop(example: Example, stop_ids: Sequence[int]) -> list[int]:
    """Find the learned spans after which generation would not stop; return their ends."""
    ids, labels = example.input_ids, example.labels
    first = labels.count(IGNORE)
    if labels[first:] == ids[first:]:  # one span, at the end: nearly every row
        return [] if labels[-1] in stop_ids else [len(ids)]
    learned = np.array([*labels, IGNORE]) != IGNORE
    ends = np.flatnonzero(learned[:-1] & ~learned[1:]) + 1
    return [end for end in ends.tolist() if ids[end - 1] not in stop_ids]


def _num_learned(example: Example) -> int:
    return len(example.labels) - example.labels.count(IGNORE)


def _end_of_answer(conversation: Conversation) -> str:
    answers = answers_of(conversation)
    text = answers[-1] if answers else conversation.messages[-1].content
    return text if len(text) <= 60 else f"...{text[-60:]}"
