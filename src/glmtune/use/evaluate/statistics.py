"""Scores of rows -> a mean with its 95 % interval, and whether two models differ.

    shares (0 or 100)     Wilson's interval; McNemar's exact test of the rows that changed
    other scores          2,000 samples of the rows (bootstrap), of both models together in a test

Sources: Wilson 1927, https://doi.org/10.2307/2276774; McNemar 1947,
https://doi.org/10.1007/BF02295996; Koehn 2004, https://aclanthology.org/W04-3250.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Z = 1.959963984540054  # of the normal distribution, for 95 %
NUM_SAMPLES = 2_000
SAMPLED_AT_ONCE = 4_000_000  # rows
LEAST_ROWS = 10  # below, the bootstrap finds differences where there are none
SIGNIFICANT = 0.05

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a metric measured of rows: the mean of `values`, or a ratio of two sums.

    Attributes:
        values: of each row.
        weights: what a row's value is a sum over; None is 1 for each.
        transform: of the ratio, such as `exp` for perplexity.
        is_share: whether each value is 0 or 100.
        better: whether higher is better; None where neither is.
    """

    values: Floats
    weights: Floats | None = None
    transform: Callable[[Any], Any] | None = None
    is_share: bool = False
    better: Literal["higher", "lower"] | None = "higher"

    def total(self, rows: Any = slice(None)) -> Any:
        """Return the value over some rows; `rows` may have a dimension of samples before."""
        values = self.values[rows]
        if self.weights is None:
            ratio = values.mean(-1)
        else:
            ratio = values.sum(-1) / np.maximum(self.weights[rows].sum(-1), 1e-12)
        return ratio if self.transform is None else self.transform(ratio)


@dataclass(frozen=True, slots=True)
class Difference:
    """How two models differ on the same rows.

    Attributes:
        value: tuned less base.
        low, high: the 95 % interval.
        p: of the difference if the models were equal.
        test: that gave p.
        verdict: None for a metric of which neither direction is better.
    """

    value: float
    low: float
    high: float
    p: float
    test: Literal["mcnemar", "bootstrap"]
    verdict: Verdict | None


def interval(measured: Measured) -> tuple[float, float]:
    """Return the 95 % interval of a value."""
    number = len(measured.values)
    if measured.is_share:
        low, high = wilson(round(float(measured.values.sum()) / 100), number)
        return 100 * low, 100 * high
    if number < 2:
        value = float(measured.total())
        return value, value
    samples = np.concatenate([measured.total(rows) for rows in _samples(number)])
    low, high = np.quantile(samples, (0.025, 0.975))
    return float(low), float(high)


def wilson(successes: int, number: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    >>> [round(bound, 4) for bound in wilson(98, 102)]
    [0.9035, 0.9846]
    """
    if not number:
        return 0.0, 1.0
    share, square = successes / number, Z * Z
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = Z / (1 + square / number)
    half *= math.sqrt(share * (1 - share) / number + square / (4 * number * number))
    # rounding must not leave a share of 0 or 1 outside of its interval
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == number else middle + half


def compare(base: Measured, tuned: Measured) -> Difference:
    """Compare two models on the same rows.

    Args:
        base, tuned: of the same metric, row by row.
    """
    number = len(base.values)
    value = float(tuned.total() - base.total())
    low = high = value
    p = 1.0
    if number > 1:
        samples = np.concatenate(
            [tuned.total(rows) - base.total(rows) for rows in _samples(number)]
        )
        low, high = (float(bound) for bound in np.quantile(samples, (0.025, 0.975)))
        p = min(1.0, 2 * min(float((samples <= 0).mean()), float((samples >= 0).mean())))
        p = max(p, 1 / NUM_SAMPLES) if value else 1.0
    if not base.is_share:
        verdict = verdict_of(value, p, number, base.better)
        return Difference(value, low, high, p, "bootstrap", verdict)
    gained = int((tuned.values > base.values).sum())
    lost = int((tuned.values < base.values).sum())
    p = mcnemar(gained, lost)
    return Difference(value, low, high, p, "mcnemar", verdict_of(value, p, number, base.better))


def verdict_of(
    value: float, p: float, number: int, better: Literal["higher", "lower"] | None
) -> Verdict | None:
    """Return the verdict on a difference; None where neither direction is better.

    Args:
        value: the difference.
        p: of it if there were none.
        number: of rows.
        better: whether higher is better.
    """
    if better is None:
        return None
    if p >= SIGNIFICANT or number < LEAST_ROWS:
        return "not distinguishable"
    return "better" if (value > 0) == (better == "higher") else "worse"


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p of McNemar's exact test.

    Args:
        gained, lost: rows that only the one or only the other model has right.

    >>> round(mcnemar(15, 5), 4)
    0.0414
    """
    changed = gained + lost
    if not changed:
        return 1.0
    logs = [
        math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1)
        for k in range(min(gained, lost) + 1)
    ]
    most = max(logs)
    total = math.log(sum(math.exp(log - most) for log in logs)) + most
    return min(1.0, 2 * math.exp(total - changed * math.log(2)))


def _samples(number: int) -> Iterator[npt.NDArray[np.int64]]:
    """Sample rows with replacement, the same way every time: (samples, rows) in parts."""
    generator = np.random.default_rng(0)
    at_once = max(1, min(NUM_SAMPLES, SAMPLED_AT_ONCE // number))
    for start in range(0, NUM_SAMPLES, at_once):
        size = (min(at_once, NUM_SAMPLES - start), number)
        yield generator.integers(0, number, size=size)


def as_array(values: Sequence[float]) -> Floats:
    """Return numbers as float64."""
    return np.asarray(values, dtype=np.float64)
