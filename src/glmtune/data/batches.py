"""Packs -> the tensors of one optimizer step; their order, and where to resume.

The order of an epoch depends only on the seed and the epoch, so a resumed run continues with
exactly the rows that it would have seen. The rows of a step are given by that order; how they
are packed into micro-batches changes only the time they take, unless a step's loss is to be the
mean of the micro-batches' means (`training.average`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from glmtune.data.packing import Pack, group_rows, pack
from glmtune.kernels.pack_layout import PackLayout, copy_to
from glmtune.template.base import IGNORE, Example


class Examples(Protocol):
    """A sequence of examples: encoded data, or a plain list in a test."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go through the model together: one pack, or padded rows.

    Attributes:
        input_ids, labels: int64, (batch, seq); labels are not shifted. A pack has batch 1.
        position_ids: (batch, seq); None for 0, 1, 2, ...
        attention_mask: (batch, seq), 1 for real tokens; None for a pack, and for padding on the
            right, where a causal model needs none.
        cu_seq_lens: int32, (examples + 1,): where the examples of a pack begin, and the end.
        prefix_lengths: int32, (examples,): how many tokens at the beginning of each example attend
            to each other in both directions; None where everything is causal.
        block_position_ids: (batch, seq), GLM's second position; None if the model has none.
        rows: which examples these are, for messages.
        is_good: bool, (examples,): what labels say of the answers; None without labels.
        weights: float32, (batch, seq), of the labels in the loss; None where all are 1.
        pack_layout: the boundaries and prefixes of a pack, on the host.
        predicting: int64, (learned,): the positions of a pack that predict a learned token.
        targets: int64, (learned,): those tokens.

    The last three are made when a pack is copied to an accelerator. To find them there, the host
    would have to wait for it.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    cu_seq_lens: Tensor | None = None
    rows: tuple[int, ...] = ()
    prefix_lengths: Tensor | None = None
    block_position_ids: Tensor | None = None
    is_good: Tensor | None = None
    weights: Tensor | None = None
    pack_layout: PackLayout | None = None
    predicting: Tensor | None = None
    targets: Tensor | None = None

    def inputs(self) -> dict[str, Any]:
        """Return the arguments of `forward`; for a pack, by the names of flash attention."""
        given: dict[str, Any] = {"input_ids": self.input_ids}
        if self.position_ids is not None:
            given["position_ids"] = self.position_ids
        if self.attention_mask is not None:
            given["attention_mask"] = self.attention_mask
        if self.cu_seq_lens is not None:
            layout = self.pack_layout
            longest = int(self.cu_seq_lens.diff().max()) if layout is None else layout.longest
            given |= {"cu_seq_lens_q": self.cu_seq_lens, "cu_seq_lens_k": self.cu_seq_lens}
            given |= {"max_length_q": longest, "max_length_k": longest}
            if layout is not None:
                given["pack_layout"] = layout
        if self.prefix_lengths is not None:
            given["prefix_lengths"] = self.prefix_lengths
        if self.block_position_ids is not None:
            given["block_position_ids"] = self.block_position_ids
        return given

    def to(self, device: torch.device) -> "MicroBatch":
        """Copy every tensor to a device, without waiting for it."""
        made = {} if device.type == "cpu" else self._of_the_host()
        tensors = {
            field.name: copy_to(value, device)
            for field in fields(self)
            if isinstance(value := made.get(field.name, getattr(self, field.name)), Tensor)
        }
        return replace(self, **{**made, **tensors})

    def _of_the_host(self) -> dict[str, Any]:
        """Make what the host must know of a pack, or is faster to find."""
        if self.cu_seq_lens is None or self.cu_seq_lens.device.type != "cpu":
            return {}
        predicting = (self.labels[0, 1:] != IGNORE).nonzero()[:, 0]
        return {
            "pack_layout": PackLayout.of(self.cu_seq_lens, self.prefix_lengths),
            "predicting": predicting,
            "targets": self.labels[0, 1:][predicting],
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one optimizer step."""

    micro_batches: tuple[MicroBatch, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Which examples these are."""
        return tuple(row for micro_batch in self.micro_batches for row in micro_batch.rows)


def micro_batch_of(pack: Pack, rows: Sequence[int] = ()) -> MicroBatch:
    """Make tensors of a pack, (1, seq) each."""
    ends = torch.tensor([0, *pack.lengths]).cumsum(0)
    return MicroBatch(
        input_ids=torch.tensor([pack.input_ids]),
        labels=torch.tensor([pack.labels]),
        position_ids=torch.tensor([pack.position_ids]),
        cu_seq_lens=ends.to(torch.int32),
        rows=tuple(rows),
        weights=None if pack.weights is None else torch.tensor([pack.weights]),
    )


def pack_examples(examples: Examples, rows: Sequence[int]) -> MicroBatch:
    """Pack some rows and convert them to tensors."""
    return micro_batch_of(pack([examples[row] for row in rows]), rows)


def pack_labeled(examples: Examples, rows: Sequence[int], step: int) -> MicroBatch:
    """Pack rows with the labels of their answers, the same way in every step."""
    chosen = [examples[row] for row in rows]
    return replace(
        micro_batch_of(pack(chosen), rows),
        is_good=torch.tensor([example.is_good for example in chosen], dtype=torch.bool),
    )


def idle_micro_batch(part: MicroBatch) -> MicroBatch:
    """Make the micro-batch of a process that has no rows left while others have.

    It has no labels: its loss and gradients are zero, and it counts no rows.
    """
    return replace(part, labels=torch.full_like(part.labels, IGNORE), rows=())


@lru_cache(maxsize=4)
def epoch_order(num_rows: int, seed: int, epoch: int) -> Tensor:
    """Shuffle 0 .. num_rows - 1, the same way for the same seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_rows, generator=generator)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which rows each optimizer step takes, for one process among `num_processes`.

    Attributes:
        rows: the indices to learn, in any order; they are shuffled every epoch.
        rows_per_step: of a full step, over all processes.
        max_tokens: of a pack.
        seed: of the order.
        process_index, num_processes: which share of each step this process takes.
        replay: indices of general rows. Every epoch samples `num_replayed` of them
            again, and shuffles them among the others.
        rows_per_micro_batch: these many rows of a step, in its order, are a micro-batch, as in
            trainers that pad; None packs as many as fit, since then only time depends on it.
    """

    rows: Sequence[int]
    rows_per_step: int
    max_tokens: int
    seed: int
    process_index: int = 0
    num_processes: int = 1
    replay: Sequence[int] = ()
    num_replayed: int = 0
    rows_per_micro_batch: int | None = None

    @property
    def rows_per_epoch(self) -> int:
        """Rows that an epoch learns, general ones included."""
        return len(self.rows) + self.num_replayed

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see each row once; the last may be smaller."""
        return math.ceil(self.rows_per_epoch / self.rows_per_step)

    def step_rows(self, step: int) -> list[int]:
        """Return the rows of optimizer step `step`, counted from 0 over all epochs."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.rows_per_epoch, self.seed, epoch)
        start = step_in_epoch * self.rows_per_step
        chosen: list[int] = order[start : start + self.rows_per_step].tolist()
        own = len(self.rows)
        if max(chosen) < own:
            return [self.rows[i] for i in chosen]
        drawn = epoch_order(len(self.replay), self.seed, epoch)
        return [self.rows[i] if i < own else self.replay[int(drawn[i - own])] for i in chosen]

    def known_steps(self, start: int, stop: int) -> range:
        """Return the steps from `start` to `stop` whose rows are known beforehand."""
        return range(start, stop)

    def shown_rows(self) -> list[int]:
        """Return rows of which one may be shown at any time: those of the first step."""
        return self.step_rows(0)

    def alone(self, rows: Sequence[int]) -> "BatchPlan":
        """Return a plan of one step, which takes these rows in a single process."""
        return BatchPlan(rows, len(rows), self.max_tokens, self.seed)

    def count_replayed(self, step: int) -> int:
        """Count the general rows of a step, over all processes."""
        return len(set(self.step_rows(step)).intersection(self.replay)) if self.replay else 0

    def micro_batch_rows(self, step: int, lengths: Sequence[int]) -> list[list[int]]:
        """Return the rows of each pack of a step for this process; `[]` for an idle micro-batch.

        Processes synchronize in every micro-batch, so all have as many as the one with the most.

        Args:
            step: optimizer step, counted from 0 over all epochs.
            lengths: tokens of every example, by index.
        """
        rows, size = self.step_rows(step), self.rows_per_micro_batch
        if size is not None:
            groups = [rows[start : start + size] for start in range(0, len(rows), size)]
            shares = [groups[index :: self.num_processes] for index in range(self.num_processes)]
        elif self.num_processes == 1:
            return group_rows(rows, lengths, self.max_tokens)
        else:
            rows.sort(key=lambda row: lengths[row])
            shares = [
                group_rows(rows[index :: self.num_processes], lengths, self.max_tokens)
                for index in range(self.num_processes)
            ]
        mine, most = shares[self.process_index], max(len(share) for share in shares)
        return mine + [[]] * (most - len(mine))


MakeMicroBatch = Callable[[Examples, Sequence[int], int], MicroBatch]
"""(examples, rows, step) -> what the model sees of these rows in this step."""


def rows_as_they_are(examples: Examples, rows: Sequence[int], step: int) -> MicroBatch:
    """Pack rows the same way in every step."""
    return pack_examples(examples, rows)


def batches(
    examples: Examples,
    lengths: Sequence[int],
    plan: BatchPlan,
    start: int,
    stop: int,
    make: MakeMicroBatch = rows_as_they_are,
) -> Iterator[Batch]:
    """Make the batches of steps `start` to `stop`, without reading any other."""
    for step in range(start, stop):
        idle = plan.step_rows(step)[:1]
        yield Batch(
            tuple(
                make(examples, rows, step) if rows else idle_micro_batch(make(examples, idle, step))
                for rows in plan.micro_batch_rows(step, lengths)
            )
        )


def heaviest(
    packs: Iterable[Sequence[int]], lengths: Sequence[int], learned: Sequence[int]
) -> Sequence[int]:
    """Find the pack that takes the most memory: every token does, and a learned one twice.

    Args:
        packs: the rows of each; there is at least one.
        lengths, learned: tokens of every example and how many are learned, by index.
    """
    return max(packs, key=lambda rows: sum(lengths[row] + learned[row] for row in rows))
