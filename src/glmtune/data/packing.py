"""Join examples into packs of at most `max_tokens` tokens, so that nothing is padding.

Examples are never cut, and each is in one pack. The longest go first, each into the first
pack that has room (first-fit decreasing), which leaves little room unused:

    examples   AAA BB CCCC        max_tokens = 6
    pack 0     C C C C B B        position_ids  0 1 2 3 0 1    lengths  4 2
    pack 1     A A A              position_ids  0 1 2          lengths  3

Two rules keep the examples of a pack apart. Attention stays within an example, and the first
token of an example is never a label; otherwise the end of C would learn to predict the start
of B.

Source: Krell et al. 2021, https://arxiv.org/abs/2107.02027
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from glmtune.template.base import IGNORE, Example


@dataclass(frozen=True, slots=True)
class Pack:
    """Concatenated examples.

    Attributes:
        input_ids, labels, position_ids: of one length; positions start at 0 in each example.
        lengths: tokens of each example, in order.
        weights: of the labels, as many; None where all are 1.
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    lengths: list[int]
    weights: list[float] | None = None


def group_rows(rows: Iterable[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Choose which rows go into a pack together.

    Args:
        rows: indices of examples.
        lengths: tokens of every example, by index.
        max_tokens: of a pack; a longer example is alone in its pack.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        length = int(lengths[row])
        for index, free in enumerate(room):
            if length <= free:
                groups[index].append(row)
                room[index] -= length
                break
        else:
            groups.append([row])
            room.append(max_tokens - length)
    return groups


def pack(examples: Sequence[Example]) -> Pack:
    """Concatenate examples."""
    packed = Pack([], [], [], [])
    for example in examples:
        length = len(example.input_ids)
        packed.input_ids.extend(example.input_ids)
        packed.labels.append(IGNORE)
        packed.labels.extend(example.labels[1:])
        packed.position_ids.extend(range(length))
        packed.lengths.append(length)
    if any(example.weights is not None for example in examples):
        weights = [example.weights or [1.0] * len(example.input_ids) for example in examples]
        return replace(packed, weights=[weight for each in weights for weight in each])
    return packed
