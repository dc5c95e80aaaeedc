"""A KV cache for several rows that are generated together, and attention over it.

    keys of one layer, (slots, kv_heads, room, head_dim)         one step feeds the pack
    slot 0   A A A A A a . .     a decoded token, 5 before it     a b C C C
    slot 1   B B b . . . . .     a decoded token, 2 before it     positions 5 2 0 1 2
    slot 2   C C C . . . . .     a prompt, nothing before it

Decoding rows use the first slots, so one SDPA call over a view of the buffer covers them; a
finished row is overwritten by the last. Unused positions are zeroed, since NaN x 0 would leak
through the mask.

Virtual tokens, which a tuning method puts before every prompt, are keys and values like any others:
each slot begins with its own copy of them.

A model of any family takes a `RowCache` as `past_key_values`, with the arguments that
`RowCache.feed` returns, under the attention that is registered with transformers as `rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from glmtune.kernels.decode_attention import DecodeSlots
from glmtune.kernels.pack_layout import VarlenCall
from glmtune.kernels.varlen_attention import Varlen, by_torch, works

ATTENTION = "rows"
ROOM = 256  # tokens by which all slots grow
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def supports_row_cache(model: Any) -> bool:
    """Whether a model attends through the registered interface, from plain keys and values.

    Every layer must cache keys and values of each token, for itself, and nothing else.
    """
    return (
        getattr(model, "_supports_sdpa", False)
        and getattr(model, "_supports_attention_backend", False)
        and config_supports_row_cache(model.config)
    )


def config_supports_row_cache(config: Any) -> bool:
    """Whether all layers of a model are of a kind that a `RowCache` serves."""
    return (
        set(getattr(config, "layer_types", None) or KNOWN_LAYERS) <= KNOWN_LAYERS
        and not getattr(config, "num_kv_shared_layers", None)
        and not getattr(config, "attn_logit_softcapping", None)
    )


@dataclass(frozen=True, slots=True)
class VirtualTokens:
    """Keys and values in front of every row.

    Attributes:
        layers: keys and values of each layer, (1, kv_heads, number, head_dim).
        num_positions: how many positions they take, which is the position of the first real token.
    """

    layers: Sequence[tuple[Tensor, Tensor]] = ()
    num_positions: int = 0

    @property
    def number(self) -> int:
        """How many there are."""
        return self.layers[0][0].size(2) if self.layers else 0


@torch.no_grad()
def virtual_tokens_of(model: Any) -> VirtualTokens:
    """Compute what a model, in evaluation mode, puts in front of every text."""
    # ChatGLM has the method for its prefix, and peft's virtual tokens give it to any model.
    compute = getattr(model, "virtual_tokens", None)
    return VirtualTokens(*compute()) if compute is not None else VirtualTokens()


@dataclass(frozen=True, slots=True)
class Slots:
    """Which slots of the cache the new tokens of a pack belong to.

    Attributes:
        pasts: cached tokens of every slot, before the new ones.
        lengths: new tokens of every slot, at least one.
        decoding: on an accelerator, the places of the decoding slots' tokens.
        prompts: likewise, where the others' are.
    """

    pasts: tuple[int, ...]
    lengths: tuple[int, ...]
    decoding: DecodeSlots | None = None
    prompts: "PromptPlaces | None" = None

    @property
    def num_decoding(self) -> int:
        """How many slots, from the first one on, have one new token each."""
        return len(list(takewhile(lambda length: length == 1, self.lengths)))

    @property
    def totals(self) -> tuple[int, ...]:
        """Tokens of every slot, including the new ones."""
        return tuple(map(sum, zip(self.pasts, self.lengths, strict=True)))

    def on_device(self, device: Any, room: int) -> "Slots":
        """Copy to a device, once for all layers, what attention there needs; see `DecodeSlots`."""
        places = torch.tensor(self.pasts[: self.num_decoding], dtype=torch.long)
        decoding = DecodeSlots(places.to(device), room) if len(places) else None
        return replace(self, decoding=decoding, prompts=PromptPlaces.of(self, device))


@dataclass(frozen=True, slots=True)
class PromptPlaces:
    """Prompts of a pack, and all tokens of their slots, for one call of variable-length attention.

    Attributes:
        slot, token: int64, (keys,): the places of the keys, slot by slot.
        call: the boundaries of prompts and slots.
    """

    slot: Tensor
    token: Tensor
    call: VarlenCall

    @classmethod
    def of(cls, slots: Slots, device: Any) -> "PromptPlaces | None":
        """Describe the prompts, which come after all decoding slots; None if there are none."""
        first, totals = slots.num_decoding, slots.totals
        lengths, totals = slots.lengths[first:], totals[first:]
        if not lengths:
            return None
        slot = torch.arange(first, first + len(totals)).repeat_interleave(torch.tensor(totals))
        token = torch.cat([torch.arange(total) for total in totals])
        query_ends, key_ends = (
            torch.tensor([0, *accumulate(each)], dtype=torch.int32).to(device)
            for each in (lengths, totals)
        )
        call = VarlenCall(
            queries=slice(first, first + sum(lengths)),
            keys=slice(0, sum(totals)),
            query_ends=query_ends,
            key_ends=key_ends,
            longest_query=max(lengths),
            longest_key=max(totals),
            is_causal=True,
        )
        return cls(slot.to(device), token.to(device), call)


class RowCache(Cache):
    """Keys and values of up to `num_rows` rows, each after its virtual tokens.

    Args:
        num_rows: how many rows.
        virtual: precede every row.
        num_spare: rows of the buffers after those, which no sequence uses.
    """

    def __init__(
        self, num_rows: int, virtual: VirtualTokens | None = None, num_spare: int = 0
    ) -> None:
        super().__init__(layers=[])
        self.num_rows = num_rows
        self._num_stored = num_rows + num_spare
        self.virtual = virtual or VirtualTokens()
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._room = 0
        self._slot_index = torch.empty(0, dtype=torch.long)
        self._token_index = torch.empty(0, dtype=torch.long)

    @property
    def room(self) -> int:
        """How many tokens every slot has room for."""
        return self._room

    def feed(self, pasts: Sequence[int], lengths: Sequence[int], device: Any) -> dict[str, Any]:
        """Prepare the next forward pass.

        Args:
            pasts: for every slot, how many of its cached real tokens are kept.
            lengths: for every slot, how many tokens are added.
            device: of the input ids.

        Returns:
            The arguments of the model besides `input_ids`.
        """
        slots = Slots(tuple(past + self.virtual.number for past in pasts), tuple(lengths))
        self._make_room(max(slots.totals))
        if torch.device(device).type != "cpu":
            slots = slots.on_device(device, self._room)
        slot_index = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        spans = zip(slots.pasts, slots.totals, strict=True)
        token_index = torch.cat([torch.arange(past, total) for past, total in spans])
        # Copied once, and not in every layer.
        self._slot_index, self._token_index = slot_index.to(device), token_index.to(device)
        positions = self._token_index - self.virtual.number + self.virtual.num_positions
        return {
            "position_ids": positions.unsqueeze(0),  # (1, seq)
            "past_key_values": self,
            "slots": slots,
        }

    def _make_room(self, num_tokens: int) -> None:
        """Let the buffers grow, when they are next written, so that a row may be so long."""
        if num_tokens > self._room:
            self._room = num_tokens + ROOM - num_tokens % ROOM

    def replace(self, slot: int, other: int) -> None:
        """Overwrite a slot by another."""
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[slot] = buffer[other]

    def copy(self, to: int, source: int, num_tokens: int) -> None:
        """Copy the first real tokens of a slot, after its virtual ones, to another."""
        end = num_tokens + self.virtual.number
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[to, :, :end] = buffer[source, :, :end]

    def swap(self, slot: int, other: int) -> None:
        """Exchange two slots."""
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[[slot, other]] = buffer[[other, slot]]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of a pack, (1, kv_heads, seq, head_dim).

        Returns:
            Those of all slots, (slots, kv_heads, room, head_dim).
        """
        key, value = self._buffers.get(layer_idx, (None, None))
        first = self.virtual.layers[layer_idx] if self.virtual.layers else (None, None)
        key = self._with_room(key, key_states, first[0])
        value = self._with_room(value, value_states, first[1])
        self._buffers[layer_idx] = key, value
        key[self._slot_index, :, self._token_index] = key_states[0].transpose(0, 1)
        value[self._slot_index, :, self._token_index] = value_states[0].transpose(0, 1)
        return key, value

    def _with_room(self, buffer: Tensor | None, states: Tensor, first: Tensor | None) -> Tensor:
        if buffer is not None and buffer.size(2) >= self._room:
            return buffer
        _, kv_heads, _, head_dim = states.shape
        larger = states.new_zeros(self._num_stored, kv_heads, self._room, head_dim)
        if buffer is not None:
            larger[:, :, : buffer.size(2)] = buffer
        elif first is not None:
            larger[:, :, : first.size(2)] = first
        return larger

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The least that every slot holds; tokens after that are given with their positions."""
        return self.virtual.number

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """The sizes of a mask, which is never built from them."""
        return query_length, 0


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: Slots | DecodeSlots,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from each new token to those of its own slot, up to itself.

    Args:
        module: the attention layer.
        query: (1, heads, seq, head_dim).
        key, value: (slots, kv_heads, room, head_dim); each serves heads / kv_heads query heads.
        attention_mask: None.
        slots: where the new tokens belong; `DecodeSlots` are one token of each slot.
        dropout: 0, since this is not used in training.
        scaling: multiplies the scores.
        sliding_window: how many tokens one attends to, including itself; None is all.
        **kwargs: arguments of other attention functions.

    Returns:
        (1, seq, heads, head_dim), and None for the weights, which are never formed.
    """
    if not isinstance(slots, Slots):
        return slots.attend(query, key, value, scaling, sliding_window), None
    outputs = []
    totals, num_decoding = slots.totals, slots.num_decoding
    if num_decoding:
        decoding = (
            query[:, :, :num_decoding],
            key[:num_decoding],
            value[:num_decoding],
        )
        outputs.append(
            _attend_decoding(*decoding, totals[:num_decoding], scaling, sliding_window)
            if slots.decoding is None
            else slots.decoding.attend(*decoding, scaling, sliding_window)
        )
    if slots.prompts is not None and works(query.device, query.dtype, query.size(-1)):
        outputs.append(_attend_prompts(query, key, value, slots.prompts, scaling, sliding_window))
        return torch.cat(outputs, dim=1), None
    end = num_decoding
    for slot in range(num_decoding, len(slots.lengths)):
        start, end = end, end + slots.lengths[slot]
        filled = slice(totals[slot])
        output = _attend_prompt(
            query[:, :, start:end],
            key[slot : slot + 1, :, filled],
            value[slot : slot + 1, :, filled],
            scaling,
            sliding_window,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _attend_decoding(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    totals: Sequence[int],
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Attend from one token of each slot, (1, heads, slots, head_dim), in one call."""
    longest = max(totals)
    may_attend = None
    if min(totals) < longest or _is_cut(longest, sliding_window):
        may_attend = _may_attend(totals, longest, sliding_window, query.device)
    # The query heads of a KV head take the place of tokens, so no key is copied.
    num_slots, kv_heads, head_dim = len(totals), key.size(1), query.size(3)
    output = F.scaled_dot_product_attention(
        query[0].transpose(0, 1).reshape(num_slots, kv_heads, -1, head_dim),
        key[:, :, :longest],
        value[:, :, :longest],
        attn_mask=may_attend,
        scale=scaling,
    )  # (slots, kv_heads, heads / kv_heads, head_dim)
    return output.flatten(1, 2).unsqueeze(0)


def _attend_prompts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompts: PromptPlaces,
    scaling: float | None,
    sliding_window: int | None,
    varlen: Varlen = by_torch,
) -> Tensor:
    """Attend from the last tokens of several slots to all of theirs, in one call."""
    output = varlen(
        query[0].transpose(0, 1)[prompts.call.queries],
        key[prompts.slot, :, prompts.token],  # (keys, kv_heads, head_dim)
        value[prompts.slot, :, prompts.token],
        prompts.call,
        scaling,
        (-1 if sliding_window is None else sliding_window - 1, 0),
    )
    return output.unsqueeze(0)


def _attend_prompt(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """Attend from the last tokens of one slot, (1, heads, seq, head_dim), to all of its tokens."""
    total = key.size(2)
    past = total - query.size(2)
    may_attend = None
    if past or _is_cut(total, sliding_window):
        each = range(past + 1, total + 1)
        may_attend = _may_attend(each, total, sliding_window, query.device).transpose(0, 2)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=may_attend,
        is_causal=may_attend is None,
        scale=scaling,
        enable_gqa=True,
    ).transpose(1, 2)


def _is_cut(length: int, sliding_window: int | None) -> bool:
    return sliding_window is not None and length > sliding_window


def _may_attend(
    totals: Sequence[int], num_keys: int, sliding_window: int | None, device: torch.device
) -> Tensor:
    """Make the mask of tokens, each the last of its `total`: bool, (tokens, 1, 1, keys)."""
    ends = torch.tensor(totals, device=device)[:, None, None, None]
    key_index = torch.arange(num_keys, device=device)
    may_attend = key_index < ends
    return (
        may_attend if sliding_window is None else may_attend & (key_index >= ends - sliding_window)
    )


AttentionInterface.register(ATTENTION, rows_attention)
AttentionMaskInterface.register(ATTENTION, lambda **_: None)
