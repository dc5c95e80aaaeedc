"""Examples -> the tensors of one optimizer step; their order, and where to resume.

The order of an epoch depends on the seed and the epoch alone, so a run that stopped goes
on with the very rows it would have seen. The rows of a step are fixed by that order; within
a step rows of like length share a micro-batch, so that little is padding. Padding is on the
right: a causal model's real tokens never see it, and no mask is needed.

    step of 4 rows    aaaaaaa bb cccccc ddd        micro-batches of 2
    sorted            bb.  ccccccc->  [bb. ddd] [cccccc. aaaaaaa]
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from glmtune.template import IGNORE, Example


class Examples(Protocol):
    """What batches are made of: encoded data, or a plain list in a test."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go through the model together.

    Attributes:
        input_ids, labels: int64, (batch, seq); labels are not shifted.
        attention_mask: (batch, seq), 1 for real tokens; None where padding is on the right,
            since a causal model needs none there.
        position_ids: (batch, seq); None for 0, 1, 2, ...
        rows: which examples these are, for messages.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    rows: tuple[int, ...] = ()

    def inputs(self) -> dict[str, Tensor]:
        """Name the tensors that a model's `forward` takes."""
        given = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def to(self, device: torch.device) -> "MicroBatch":
        """Move every tensor."""
        return MicroBatch(
            self.input_ids.to(device),
            self.labels.to(device),
            None if self.attention_mask is None else self.attention_mask.to(device),
            None if self.position_ids is None else self.position_ids.to(device),
            self.rows,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one optimizer step."""

    micro_batches: tuple[MicroBatch, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Which examples these are."""
        return tuple(row for micro_batch in self.micro_batches for row in micro_batch.rows)


def collate(examples: Sequence[Example], pad_id: int, rows: Sequence[int] = ()) -> MicroBatch:
    """Pad examples on the right to the longest of them."""
    seq = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), seq), pad_id, dtype=torch.long)
    labels = torch.full((len(examples), seq), IGNORE, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        labels[row, :length] = torch.tensor(example.labels, dtype=torch.long)
    return MicroBatch(input_ids, labels, rows=tuple(rows))


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> Tensor:
    """Shuffle 0 .. num_rows - 1, the same way for the same seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_rows, generator=generator)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which rows each optimizer step takes, for one process among `num_processes`.

    Attributes:
        rows: the indices to learn, in any order; they are shuffled every epoch.
        micro_batch_size, accumulation: rows of a micro-batch, micro-batches of a step.
        sort_within_step: group rows of like length. Only where the loss is a mean over the
            tokens of the step: then grouping changes nothing but the padding.
    """

    rows: Sequence[int]
    micro_batch_size: int
    accumulation: int
    seed: int
    sort_within_step: bool = True
    process_index: int = 0
    num_processes: int = 1

    @property
    def rows_per_step(self) -> int:
        """Rows of a full step, over all processes."""
        return self.micro_batch_size * self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see each row once; the last may be smaller."""
        return math.ceil(len(self.rows) / self.rows_per_step)

    def step_rows(self, step: int) -> list[int]:
        """The rows of optimizer step `step`, counted from 0 over all epochs."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.rows), self.seed, epoch)
        start = step_in_epoch * self.rows_per_step
        return [self.rows[i] for i in order[start : start + self.rows_per_step].tolist()]

    def micro_batch_rows(self, step: int, lengths: Sequence[int]) -> list[list[int]]:
        """The rows of each micro-batch of a step, for this process.

        Args:
            step: optimizer step, counted from 0 over all epochs.
            lengths: tokens of every example, by index.
        """
        rows = self.step_rows(step)
        if self.sort_within_step:
            rows.sort(key=lambda row: lengths[row])
        mine = rows[self.process_index :: self.num_processes]
        size = self.micro_batch_size
        return [mine[i : i + size] for i in range(0, len(mine), size)]


def batches(
    examples: Examples, lengths: Sequence[int], plan: BatchPlan, pad_id: int, start: int, stop: int
) -> Iterator[Batch]:
    """Make the batches of steps `start` to `stop`, without reading any other."""
    for step in range(start, stop):
        yield Batch(
            tuple(
                collate([examples[row] for row in rows], pad_id, rows)
                for rows in plan.micro_batch_rows(step, lengths)
            )
        )
