"""How often an epoch learns the rows of each source: `data.train: [{path: a.json, weight: 2}]`.

    weight 1      every row once
    weight 2      every row twice
    weight 0.5    a half of the rows, chosen by the seed, the same in every epoch
    weight 1.5    every row once, and such a half once more

Rows are repeated after held-out rows were taken away, so that no held-out row is learned; lint,
inspect and predict see every row once. The copies of a row are shuffled with all others.
"""

import random
from collections.abc import Sequence

from glmtune.recipe.sources import SourceSection


def weights_of(sources: Sequence[str | SourceSection]) -> list[float]:
    """Return the weight of each source; 1 for a plain path."""
    return [source.weight if isinstance(source, SourceSection) else 1.0 for source in sources]


def weigh_rows(
    rows: Sequence[int], source_counts: Sequence[int], weights: Sequence[float], seed: int
) -> list[int]:
    """Repeat rows, or leave some out, by the weight of their source.

    Args:
        rows: indices to learn, in order.
        source_counts: the examples of each source, which follow each other.
        weights: of each source.
        seed: decides which rows a fraction takes.

    Returns:
        The rows of an epoch; of every source that has rows, at least one.
    """
    weighed: list[int] = []
    start = 0
    for number, (count, weight) in enumerate(zip(source_counts, weights, strict=True)):
        own = [row for row in rows if start <= row < start + count]
        whole, fraction = divmod(weight, 1)
        sampled = round(fraction * len(own))
        if own and not whole:
            sampled = max(1, sampled)
        chosen = random.Random(f"{seed} {number}").sample(range(len(own)), sampled)
        weighed += own * int(whole) + [own[index] for index in sorted(chosen)]
        start += count
    return weighed
