"""Keys and values of several rows that are written at once, and attention over them.

    keys of one layer, (rows, kv_heads, room, head_dim)          one step feeds the pack
    row 0    A A A A A a . .     a decoded token, 5 before it     a b C C C
    row 1    B B b . . . . .     a decoded token, 2 before it     positions 5 2 0 1 2
    row 2    C C C . . . . .     a prompt, nothing before it

The rows that write lie first and close together, so that all of them attend in one product over
a view of the buffer; whoever leaves is replaced by the last row. What is not yet written is
zero: a mask hides it, but what is not a number would shine through.

Virtual tokens, which a method of tuning puts in front of every prompt, are keys and values like
others: each row begins with its own copy of them.

A model of any family takes a `RowCache` as `past_key_values`, with what `RowCache.feed` gives,
under the attention that is registered with transformers as `rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

ATTENTION = "rows"
ROOM = 256  # tokens by which the room of all rows grows
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def can_write_rows(model: Any) -> bool:
    """Whether every layer keeps keys and values of each token, for itself, and nothing else."""
    return (
        getattr(model, "_supports_sdpa", False)
        and getattr(model, "_supports_attention_backend", False)
        and keeps_rows(model.config)
    )


def keeps_rows(config: Any) -> bool:
    """Whether a kind of model has such layers, as far as its configuration tells."""
    return (
        set(getattr(config, "layer_types", None) or KNOWN_LAYERS) <= KNOWN_LAYERS
        and not getattr(config, "num_kv_shared_layers", None)
        and not getattr(config, "attn_logit_softcapping", None)
    )


@dataclass(frozen=True, slots=True)
class VirtualTokens:
    """What stands in front of every row.

    Attributes:
        layers: keys and values of each layer, (1, kv_heads, number, head_dim).
        num_positions: how many positions they take: the first real token has this one.
    """

    layers: Sequence[tuple[Tensor, Tensor]] = ()
    num_positions: int = 0

    @property
    def number(self) -> int:
        """How many they are."""
        return self.layers[0][0].size(2) if self.layers else 0


@torch.no_grad()
def virtual_tokens_of(model: Any) -> VirtualTokens:
    """Ask a model, in eval mode, what it puts in front of every text."""
    give = getattr(model, "virtual_tokens", None)  # of ChatGLM, and of peft's prompts over any
    return VirtualTokens(*give()) if give is not None else VirtualTokens()


@dataclass(frozen=True, slots=True)
class Rows:
    """What a pack of new tokens belongs to.

    Attributes:
        pasts: the tokens of every row before the new ones.
        lengths: the new tokens of every row, at least one.
    """

    pasts: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def num_writing(self) -> int:
        """The first rows that have one new token each."""
        return len(list(takewhile(lambda length: length == 1, self.lengths)))

    @property
    def totals(self) -> tuple[int, ...]:
        """The tokens of every row, the new ones too."""
        return tuple(map(sum, zip(self.pasts, self.lengths, strict=True)))


class RowCache(Cache):
    """Keys and values of up to `num_rows` rows, behind their virtual tokens."""

    def __init__(self, num_rows: int, virtual: VirtualTokens | None = None) -> None:
        super().__init__(layers=[])
        self.num_rows = num_rows
        self.virtual = virtual or VirtualTokens()
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._room = 0
        self._slots = torch.empty(0, dtype=torch.long)
        self._places = torch.empty(0, dtype=torch.long)

    def feed(self, pasts: Sequence[int], lengths: Sequence[int], device: Any) -> dict[str, Any]:
        """Say what comes next, and give what the model has to be called with besides the ids.

        Args:
            pasts: for every row, the real tokens that the cache holds and that stay.
            lengths: for every row, the tokens that are added.
            device: where the ids will be.
        """
        rows = Rows(tuple(past + self.virtual.number for past in pasts), tuple(lengths))
        longest = max(rows.totals)
        if longest > self._room:
            self._room = longest + ROOM - longest % ROOM
        self._slots = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        places = zip(rows.pasts, rows.totals, strict=True)
        self._places = torch.cat([torch.arange(past, total) for past, total in places])
        positions = self._places - self.virtual.number + self.virtual.num_positions
        return {
            "position_ids": positions.unsqueeze(0).to(device),  # (1, seq)
            "past_key_values": self,
            "rows": rows,
        }

    def replace(self, row: int, other: int) -> None:
        """Let a row go and put another in its place."""
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[row] = buffer[other]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take keys and values of a pack, (1, kv_heads, seq, head_dim).

        Returns:
            Those of all rows, (rows, kv_heads, room, head_dim).
        """
        key, value = self._buffers.get(layer_idx, (None, None))
        first = self.virtual.layers[layer_idx] if self.virtual.layers else (None, None)
        key = self._with_room(key, key_states, first[0])
        value = self._with_room(value, value_states, first[1])
        self._buffers[layer_idx] = key, value
        key[self._slots, :, self._places] = key_states[0].transpose(0, 1)
        value[self._slots, :, self._places] = value_states[0].transpose(0, 1)
        return key, value

    def _with_room(self, buffer: Tensor | None, states: Tensor, first: Tensor | None) -> Tensor:
        if buffer is not None and buffer.size(2) >= self._room:
            return buffer
        _, kv_heads, _, head_dim = states.shape
        larger = states.new_zeros(self.num_rows, kv_heads, self._room, head_dim)
        if buffer is not None:
            larger[:, :, : buffer.size(2)] = buffer
        elif first is not None:
            larger[:, :, : first.size(2)] = first
        return larger

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """What every row holds at least; beyond that each token comes with its position."""
        return self.virtual.number

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Nobody builds a mask from these."""
        return query_length, 0


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Rows,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from new tokens to those of their own row, up to themselves.

    Args:
        module: the attention layer.
        query: (1, heads, seq, head_dim).
        key, value: (rows, kv_heads, room, head_dim); each serves heads / kv_heads query heads.
        attention_mask: None.
        rows: whose the new tokens are.
        dropout: 0; nothing is learned here.
        scaling: multiplies the scores.
        sliding_window: how many tokens a token sees, itself too; None is all.
        **kwargs: what other attentions want.

    Returns:
        (1, seq, heads, head_dim), and None for the weights, which are never formed.
    """
    outputs = []
    if num_writing := rows.num_writing:
        totals = rows.totals[:num_writing]
        longest = max(totals)
        may_attend = None
        if min(totals) < longest or _is_cut(longest, sliding_window):
            may_attend = _may_attend(totals, longest, sliding_window, query.device)
        # The heads that share a key attend as if they were so many tokens: nothing is copied.
        kv_heads, head_dim = key.size(1), query.size(3)
        output = F.scaled_dot_product_attention(
            query[0, :, :num_writing].transpose(0, 1).reshape(num_writing, kv_heads, -1, head_dim),
            key[:num_writing, :, :longest],
            value[:num_writing, :, :longest],
            attn_mask=may_attend,
            scale=scaling,
        )  # (rows, kv_heads, groups, head_dim)
        outputs.append(output.flatten(1, 2).unsqueeze(0))
    end = num_writing
    for row in range(num_writing, len(rows.lengths)):
        start, end = end, end + rows.lengths[row]
        past, total = rows.pasts[row], rows.totals[row]
        may_attend = None
        if past or _is_cut(total, sliding_window):
            each = range(past + 1, total + 1)
            may_attend = _may_attend(each, total, sliding_window, query.device).transpose(0, 2)
        output = F.scaled_dot_product_attention(
            query[:, :, start:end],
            key[row : row + 1, :, :total],
            value[row : row + 1, :, :total],
            attn_mask=may_attend,
            is_causal=may_attend is None,
            scale=scaling,
            enable_gqa=True,
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _is_cut(length: int, sliding_window: int | None) -> bool:
    return sliding_window is not None and length > sliding_window


def _may_attend(
    totals: Sequence[int], num_keys: int, sliding_window: int | None, device: torch.device
) -> Tensor:
    """Whether each of some tokens, by its number in its row, sees a key: (tokens, 1, 1, keys)."""
    ends = torch.tensor(totals, device=device)[:, None, None, None]
    places = torch.arange(num_keys, device=device)
    may_attend = places < ends
    return may_attend if sliding_window is None else may_attend & (places >= ends - sliding_window)


AttentionInterface.register(ATTENTION, rows_attention)
AttentionMaskInterface.register(ATTENTION, lambda **_: None)
