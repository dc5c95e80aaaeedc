"""Where the examples of a pack are, known on the host, for attention on an accelerator.

To read the lengths of a pack from a GPU, the host has to wait until the GPU has done all earlier
work, in every layer. So a layout is made on the host together with the pack, and what the kernels
need of it is copied once per pack, without waiting.

Variable-length attention (`glmtune.kernels.varlen_attention`) takes one call for a causal pack.
Causality there is aligned to the bottom right: the last query of an example sees all of its keys.
So prefixes and virtual tokens need no mask, and two calls at most:

    prefix 2    A  x x            call 1: the tokens of the prefix, to each other, not causal
                A  x x
                A  x x x          call 2: the others, to all tokens of their example, causal
                A  x x x x

    virtual tokens precede the keys of every example, in both calls

Bucketed attention (`glmtune.kernels.bucketed_attention`) takes one call for each power of two, of
the examples of about that length, padded on the right to the longest of them.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS_PER_EXAMPLE = 128  # that flash attention may add to each example in its buffers
BUFFER_NUMEL = 2**31  # elements of a buffer that flash attention can address


@dataclass(frozen=True, slots=True)
class VarlenCall:
    """One call of variable-length attention.

    Attributes:
        queries: which tokens of the pack attend; a slice, or int64 indices.
        keys: to which, where virtual tokens count as tokens in front of the pack.
        query_ends, key_ends: int32, (examples + 1,): the boundaries of the examples among them.
        longest_query, longest_key: of an example.
        is_causal: aligned to the bottom right; otherwise every query sees all keys of its example.
    """

    queries: slice | Tensor
    keys: slice | Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int
    is_causal: bool


@dataclass(frozen=True, slots=True)
class Bucket:
    """Examples of about the same length.

    Attributes:
        rows: int64, (examples, longest): the tokens of each; padding repeats its last token.
        prefixes: int64, (examples,); None where no example has a prefix of two tokens or more.
    """

    rows: Tensor
    prefixes: Tensor | None


class PackLayout:
    """The lengths of the examples of a pack, and what follows from them.

    Args:
        lengths: tokens of each example, in order.
        prefixes: tokens at the start of each that attend to each other in both directions.
    """

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[int] | None = None) -> None:
        self.lengths = tuple(lengths)
        # One token is causal either way.
        self.prefixes = tuple(p if p > 1 else 0 for p in prefixes or [0] * len(lengths))
        self.starts = (0, *accumulate(self.lengths))[:-1]
        self.longest = max(self.lengths, default=0)
        self._made: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, cu_seq_lens: Tensor, prefix_lengths: Tensor | None) -> "PackLayout":
        """Read a layout from tensors, which waits for a GPU if they are there."""
        prefixes = None if prefix_lengths is None else prefix_lengths.tolist()
        return cls(cu_seq_lens.diff().tolist(), prefixes)

    def varlen_calls(
        self, device: torch.device, num_virtual: int, width: int
    ) -> tuple[list[VarlenCall], Tensor | None]:
        """Return the calls of variable-length attention, the same ones for every layer.

        Args:
            device: of the tensors.
            num_virtual: virtual tokens in front of every example.
            width: query heads times their size, which limits the tokens of a call.

        Returns:
            The calls, and where each token of the pack is among their outputs; None where the
            outputs are in order.
        """
        key = ("varlen", device, num_virtual, width)
        if key not in self._made:
            self._made[key] = self._make_varlen_calls(device, num_virtual, width)
        made: tuple[list[VarlenCall], Tensor | None] = self._made[key]
        return made

    def buckets(self, device: torch.device) -> tuple[list[Bucket], Tensor]:
        """Return the buckets, and where each token of the pack is among their flat outputs."""
        key = ("buckets", device)
        if key not in self._made:
            self._made[key] = self._make_buckets(device)
        made: tuple[list[Bucket], Tensor] = self._made[key]
        return made

    def part(self, span: slice, lengths: Sequence[int]) -> "PackLayout":
        """Return the layout of consecutive causal examples, the same one for every layer."""
        key = ("part", span.start, span.stop)
        if key not in self._made:
            self._made[key] = PackLayout(lengths)
        made: PackLayout = self._made[key]
        return made

    def _make_varlen_calls(
        self, device: torch.device, num_virtual: int, width: int
    ) -> tuple[list[VarlenCall], Tensor | None]:
        spans = [(0, length) for length in self.lengths]
        calls: list[tuple[list[tuple[int, int]], bool]] = [(spans, True)]
        if any(self.prefixes):
            first = [(0, prefix) for prefix in self.prefixes]
            rest = [(p, n) for p, n in zip(self.prefixes, self.lengths, strict=True)]
            calls = [(first, False), (rest, True)]
        made = [
            _varlen_call(self.starts[run], spans[run], num_virtual, is_causal, device)
            for spans, is_causal in calls
            for run in self._runs(num_virtual, width)
            if any(end > begin for begin, end in spans[run])
        ]
        if len(calls) == 1:
            return made, None
        order = _indices(
            range(start + begin, start + end)
            for spans, _ in calls
            for start, (begin, end) in zip(self.starts, spans, strict=True)
        )
        return made, _on(device, order.argsort())

    def _runs(self, num_virtual: int, width: int) -> Iterator[slice]:
        """Split the examples so that the buffers of a call can be addressed."""
        limit, begin, rows = BUFFER_NUMEL // width, 0, 0
        for index, length in enumerate(self.lengths):
            more = length + num_virtual + ROWS_PER_EXAMPLE
            if rows + more >= limit and index > begin:
                yield slice(begin, index)
                begin, rows = index, 0
            rows += more
        yield slice(begin, len(self.lengths))

    def _make_buckets(self, device: torch.device) -> tuple[list[Bucket], Tensor]:
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(self.lengths):
            groups.setdefault((length - 1).bit_length(), []).append(index)
        buckets, places, taken = [], np.empty(sum(self.lengths), dtype=np.int64), 0
        for group in groups.values():
            starts = np.array([self.starts[index] for index in group])[:, None]
            lengths = np.array([self.lengths[index] for index in group])[:, None]
            order = np.arange(lengths.max())
            rows = starts + np.minimum(order, lengths - 1)  # (examples, longest)
            is_token = order < lengths
            places[rows[is_token]] = taken + np.flatnonzero(is_token)
            taken += rows.size
            prefixes = np.array([self.prefixes[index] for index in group])
            buckets.append(
                Bucket(_on(device, rows), _on(device, prefixes) if prefixes.any() else None)
            )
        return buckets, _on(device, places)


def _varlen_call(
    starts: Sequence[int],
    spans: Sequence[tuple[int, int]],
    num_virtual: int,
    is_causal: bool,
    device: torch.device,
) -> VarlenCall:
    """Make the call in which a span of each example attends to the example up to the span's end."""
    kept = [(s, span) for s, span in zip(starts, spans, strict=True) if span[1] > span[0]]
    numbers = [end - begin for _, (begin, end) in kept]
    seen = [num_virtual + end for _, (_, end) in kept]
    first = kept[0][0]
    is_whole = all(begin == 0 for _, (begin, _) in kept)
    is_whole = is_whole and kept[-1][0] + numbers[-1] - first == sum(numbers)
    queries: slice | Tensor = slice(first, first + sum(numbers))
    keys = queries
    if not is_whole:
        tokens = (range(start + begin, start + end) for start, (begin, end) in kept)
        queries = _on(device, _indices(tokens))
    if num_virtual or not is_whole:
        own = (range(num_virtual + start, num_virtual + start + end) for start, (_, end) in kept)
        keys = _on(device, _indices(chain(range(num_virtual), each) for each in own))
    return VarlenCall(
        queries,
        keys,
        _ends(numbers, device),
        _ends(seen, device),
        max(numbers),
        max(seen),
        is_causal,
    )


def _indices(parts: Iterable[Iterable[int]]) -> NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(parts), dtype=np.int64)


def _ends(numbers: Sequence[int], device: torch.device) -> Tensor:
    return _on(device, np.array([0, *accumulate(numbers)], dtype=np.int32))


def _on(device: torch.device, numbers: NDArray[Any]) -> Tensor:
    return copy_to(torch.from_numpy(numbers), device)


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for the device."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
