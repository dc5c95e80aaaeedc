"""Decode steps of a batch on a GPU, of which the host reads each one step late.

    device    step 1 | step 2 | step 3 | step 4           each step samples the input of the next
    host             |  reads 1, starts 3 |  reads 2 ...  and never waits for an idle GPU

So when a sequence turns out to have ended, one more token of it has been computed, which is
dropped. When sequences join or leave, the step under way is read before another is started. Where
the end is known beforehand, by the limit of an answer, no step is started in vain.

Sequences that the host samples, since they have a constraint or want scores, take a step at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glmtune.kernels.packed_attention import without_cudnn
from glmtune.kernels.slot_cache import SlotCache, marked
from glmtune.use.device_sampling import BLOCK, RowSampler, SampledRow
from glmtune.use.host_sampling import explain_not_finite, sample

if TYPE_CHECKING:
    from glmtune.use.generate import Slot


@dataclass(slots=True)
class _Step:
    """A step that was started.

    Attributes:
        slots: its sequences; None for one that has left since.
        found: int64, (slots,), on the host: the tokens, -1 where scores are not finite.
        is_there: when the copy of `found` has arrived; None if it is there.
        dtype: of the scores.
    """

    slots: list["Slot | None"]
    found: Tensor
    is_there: torch.cuda.Event | None
    dtype: torch.dtype


class Decoder:
    """Gives the sequences of a batch their next tokens.

    Args:
        model: a causal language model in evaluation mode, inside `row_attention`.
        cache: with the keys and values of the sequences, in their order.
    """

    def __init__(self, model: Any, cache: SlotCache) -> None:
        self._model, self._cache = model, cache
        self._under_way: _Step | None = None
        self._sampler = RowSampler([], model.device)
        self._num_left = 0  # steps that were prepared, and not yet started
        self._copies: list[tuple[Tensor, torch.cuda.Event]] = []
        self._has_looked = False  # at the model, since a cache may come from an earlier one

    def can_step(self, slots: Sequence["Slot"], lengths: Sequence[int]) -> bool:
        """Whether the next step of a batch can be left to `step`.

        Args:
            slots: the sequences.
            lengths: how many tokens of each are to be computed.
        """
        if self._under_way is not None:
            return True
        return self.can_score(lengths) and all(slot.is_sampled_on_device for slot in slots)

    def can_score(self, lengths: Sequence[int]) -> bool:
        """Whether the next step is one token of each sequence, as `score` computes it."""
        return self._cache.is_filled and max(lengths) == 1

    def leave(self, slot: "Slot") -> None:
        """Drop what is under way for a sequence."""
        if self._under_way is not None:
            slots = self._under_way.slots
            self._under_way.slots = [None if each is slot else each for each in slots]

    @torch.no_grad()
    @without_cudnn()
    def step(self, slots: Sequence["Slot"]) -> list["Slot"]:
        """Read one step, having started another; return the sequences that got a token or failed.

        Those that joined since the step was started get none.
        """
        step = self._under_way
        if step is None:
            self._begin(slots)
            step = self._start(slots)
        self._under_way = self._start(slots) if self._may_continue(step, slots) else None
        return _read(step)

    @torch.no_grad()
    @without_cudnn()
    def score(self, slots: Sequence["Slot"]) -> Tensor:
        """Compute one step, and return the scores of the next tokens: (slots, vocab)."""
        self._prepare(slots, 1)
        return self._cache.decode(self._model)

    def sample(self, scores: Tensor, slots: Sequence["Slot"]) -> list[int]:
        """Sample the next token of every sequence by (slots, vocab), wherever each is sampled."""
        on_device = [i for i, slot in enumerate(slots) if slot.is_sampled_on_device]
        tokens = [-1] * len(slots)
        if on_device:
            sampler = RowSampler([_row(slots[i]) for i in on_device], scores.device)
            for index, token in zip(
                on_device, sampler.sample(scores[on_device]).tolist(), strict=True
            ):
                tokens[index] = token
        others = [i for i, slot in enumerate(slots) if not slot.is_sampled_on_device]
        if others:
            sampled = sample(scores[others], [slots[i] for i in others])
            for index, token in zip(others, sampled, strict=True):
                tokens[index] = token
        return tokens

    def _begin(self, slots: Sequence["Slot"]) -> None:
        longest = max(slot.request.max_new_tokens - len(slot.completion) for slot in slots)
        self._num_left = min(longest, BLOCK)
        self._prepare(slots, self._num_left)
        self._sampler = RowSampler([_row(slot) for slot in slots], self._model.device)

    def _prepare(self, slots: Sequence["Slot"], num_steps: int) -> None:
        if not self._has_looked:
            self._cache.look_at(self._model)
            self._has_looked = True
        tokens, pasts = [slot.ids[-1] for slot in slots], [slot.num_cached for slot in slots]
        self._cache.begin(self._model, tokens, pasts, num_steps, [slot.group for slot in slots])

    def _start(self, slots: Sequence["Slot"]) -> _Step:
        """Start a step, without waiting for anything."""
        self._num_left -= 1
        if self._sampler.is_plain_greedy:
            found = self._cache.decode_greedily(self._model)
        else:
            scores = self._cache.decode(self._model).float()
            tokens = self._sampler.sample(scores)
            self._cache.advance(tokens)
            found = marked(tokens, scores)
        dtype = self._cache.dtype
        if found.device.type != "cuda":
            return _Step([*slots], found.clone(), None, dtype)
        copied, is_there = self._take_copy(len(slots))
        copied.copy_(found, non_blocking=True)
        is_there.record(torch.cuda.current_stream(found.device))
        return _Step([*slots], copied, is_there, dtype)

    def _take_copy(self, num_slots: int) -> tuple[Tensor, torch.cuda.Event]:
        """Return pinned memory and an event for a step: two take turns, as one step is read late.

        Both take long to make, compared with a step.
        """
        if not self._copies:
            for _ in range(2):
                pinned = torch.empty(self._cache.num_rows, dtype=torch.long, pin_memory=True)
                self._copies.append((pinned, torch.cuda.Event()))  # type: ignore[no-untyped-call]
        self._copies.reverse()
        pinned, event = self._copies[0]
        return pinned[:num_slots], event

    def _may_continue(self, step: _Step, slots: Sequence["Slot"]) -> bool:
        """Whether another step of the same sequences is wanted, as far as the host can know."""
        return (
            self._num_left > 0
            and step.slots == [*slots]
            and all(len(s.completion) + 1 < s.request.max_new_tokens for s in slots)
        )


def _row(slot: "Slot") -> SampledRow:
    return SampledRow(slot.sampling, slot.uniform, slot.ids, slot.completion)


def _read(step: _Step) -> list["Slot"]:
    """Wait for a step, and give its tokens to those that are still there."""
    if step.is_there is not None:
        step.is_there.synchronize()
    changed = []
    for slot, token in zip(step.slots, step.found.tolist(), strict=True):
        if slot is None:
            continue
        slot.num_cached += 1
        if token >= 0:
            slot.ids.append(token)
            slot.completion.append(token)
        else:
            slot.failure = explain_not_finite(slot, step.dtype)
        changed.append(slot)
    return changed
