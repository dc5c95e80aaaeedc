"""Attention over packs, for every model family: each example attends to itself alone.

A pack is one row of examples end to end; `cu_seq_lens_q` says where they meet. Attending
example by example costs what the examples cost, where a block-diagonal mask over the pack
would compute all of its empty blocks too, and no mask is ever built:

    A A A B B       A  x                the same scores as for A and B apart,
                    A  x x              and nothing for the blanks
                    A  x x x
                    B        x
                    B        x x

Where `prefix_lengths` are given too, the first tokens of each example see each other in both
directions, as part A of GLM's blank infilling does. They need no mask, and the rows below them a
small one:

    prefix 2        A  x x
                    A  x x
                    A  x x x

Virtual tokens, keys and values that a method of tuning makes for every layer, stand in front of
each example, and all of its tokens see them:

    virtual  A A A B B
       v v   x                          once for the pack, however many examples it has
       v v   x x
       v v   x x x
       v v         x
       v v         x x

Where a family lets a token see only so many before it (a sliding window, chunks), transformers
makes the mask of the whole pack as soon as that is longer, and each example attends by its own
block of it.

On a CPU the query heads that share keys stand in line for short examples, so that each key is read
and its gradient summed once for all of them. Whoever is behind token i then is i // heads:

    heads a and b   Aa  x            0.6 of the time for 130 tokens and ChatGLM3's 16 heads a key,
                    Ab  x            and more than 1 from 512 on, where the empty half of the block
                    Aa  x x          costs more than is saved
                    Ab  x x

Registered with transformers as `packed`, so a model of any family takes it by
`attn_implementation="packed"`. Without `cu_seq_lens_q` (in generation, or for padded batches)
it is transformers' own `sdpa`. On a GPU `flash_attention_2` reads the same argument.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"
IN_LINE_TOKENS = 256  # of an example, up to which query heads stand in line on a CPU


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    prefix_lengths: Tensor | None = None,
    virtual_tokens: Sequence[tuple[Tensor, Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each example of a pack: causally, but in both directions within its prefix.

    Args:
        module: the attention layer.
        query: (1, heads, seq, head_dim) for a pack.
        key, value: (1, kv_heads, seq, head_dim); each serves heads / kv_heads query heads.
        attention_mask: None for a pack, or (1, 1, seq, seq), whether a token may attend to another,
            where a token does not see all that is before it.
        dropout: probability of dropping an attention weight.
        scaling: multiplies the scores.
        cu_seq_lens_q: int32, (examples + 1,): where examples begin, and the end.
        prefix_lengths: int32, (examples,): tokens at the beginning of each example that see each
            other in both directions. Without them everything is causal.
        virtual_tokens: for every layer keys and values, (1, kv_heads, number, head_dim), that
            stand in front of each example.
        **kwargs: for `sdpa`, when this is no pack.

    Returns:
        (1, seq, heads, head_dim), and None for the weights, which are never formed.
    """
    if cu_seq_lens_q is None:
        if prefix_lengths is not None:
            raise ValueError("prefix_lengths are of the examples of a pack: give cu_seq_lens_q too")
        if virtual_tokens is not None:
            raise ValueError("virtual_tokens stand before examples of a pack: give cu_seq_lens_q")
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    if attention_mask is not None and (prefix_lengths is not None or virtual_tokens is not None):
        raise ValueError("a sliding window has no place for prefix_lengths and virtual_tokens")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("scores that are capped, and sinks, are not there for packs")
    lengths = cu_seq_lens_q.diff().tolist()
    prefixes = [0] * len(lengths) if prefix_lengths is None else prefix_lengths.tolist()
    parts = [torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)]

    def attend(q: Tensor, k: Tensor, v: Tensor, **who: Any) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, enable_gqa=True, **who
        ).transpose(1, 2)

    heads = query.size(1) // key.size(1)  # that share keys
    may_stand_in_line = query.device.type == "cpu" and heads > 1 and not dropout
    longest = max((length for length in lengths if length <= IN_LINE_TOKENS), default=0)

    def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not may_stand_in_line or q.size(2) > longest:
            return attend(q, k, v, is_causal=True)
        scores = causal_scores_in_line(cu_seq_lens_q, longest, heads, q.dtype)
        return attend_in_line(q, k, v, scores, scaling)

    outputs: list[Tensor] = []
    for q, k, v, prefix in zip(*parts, prefixes, strict=True):
        if virtual_tokens is not None:
            layer_index: Any = module.layer_idx
            keys, values, may_attend = put_behind(virtual_tokens[layer_index], k, v, prefix)
            outputs.append(attend(q, keys, values, attn_mask=may_attend))
            continue
        if attention_mask is not None:
            start = sum(output.shape[1] for output in outputs)
            block = slice(start, start + q.shape[2])
            outputs.append(attend(q, k, v, attn_mask=attention_mask[:, :, block, block]))
            continue
        if prefix <= 1:  # one token sees itself, either way
            outputs.append(attend_causally(q, k, v))
            continue
        outputs.append(attend(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix]))
        if (rest := q.shape[2] - prefix) > 0:
            may_attend = q.new_ones(rest, q.shape[2], dtype=torch.bool).tril(prefix)
            outputs.append(attend(q[:, :, prefix:], k, v, attn_mask=may_attend))
    return torch.cat(outputs, dim=1), None


def put_behind(
    virtual: tuple[Tensor, Tensor], key: Tensor, value: Tensor, prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Put an example behind virtual tokens.

    Args:
        virtual: keys and values of the layer, (1, kv_heads, number, head_dim).
        key, value: of the example, (1, kv_heads, seq, head_dim).
        prefix: how many of its first tokens see each other in both directions.

    Returns:
        Keys and values, (1, kv_heads, number + seq, head_dim), and whether a token (row) may attend
        to another (column), (seq, number + seq).
    """
    keys, values = (
        torch.cat((first.to(own.dtype), own), dim=2)
        for first, own in zip(virtual, (key, value), strict=True)
    )
    seq, number = key.shape[2], virtual[0].shape[2]
    may_attend = key.new_ones(seq, number + seq, dtype=torch.bool).tril(number)
    may_attend[:, : number + prefix] = True
    return keys, values, may_attend


_scores_of_packs: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()


def causal_scores_in_line(
    cu_seq_lens: Tensor, longest: int, heads: int, dtype: torch.dtype
) -> Tensor:
    """Give what is added to the scores of query heads in line: 0, or -inf for what is behind.

    All layers keep it for the gradient, so there is one for a pack, as long as the pack is there.

    Args:
        cu_seq_lens: (examples + 1,), on a CPU; the same tensor in all layers.
        longest: tokens of an example that stands in line; the upper left corner of the result is
            that of a shorter one.
        heads: that share keys.
        dtype: of the queries.

    Returns:
        (longest * heads, longest).
    """
    scores = _scores_of_packs.get(cu_seq_lens)
    if scores is None or scores.shape != (longest * heads, longest) or scores.dtype != dtype:
        is_behind = torch.ones(longest, longest, dtype=torch.bool).triu(1)
        in_line = is_behind.repeat_interleave(heads, dim=0)
        scores = torch.zeros(in_line.shape, dtype=dtype).masked_fill_(in_line, -torch.inf)
        _scores_of_packs[cu_seq_lens] = scores
    return scores


def attend_in_line(
    query: Tensor, key: Tensor, value: Tensor, scores: Tensor, scaling: float | None
) -> Tensor:
    """Attend causally within an example, the query heads that share keys in line.

    Args:
        query: (1, heads, seq, head_dim).
        key, value: (1, kv_heads, seq, head_dim).
        scores: of `causal_scores_in_line`, for as many tokens or more.
        scaling: multiplies the scores.

    Returns:
        (1, seq, heads, head_dim).
    """
    kv_heads, seq, head_dim = key.shape[1:]
    line = query.reshape(1, kv_heads, -1, seq, head_dim).transpose(2, 3).flatten(2, 3)
    output = F.scaled_dot_product_attention(
        line, key, value, attn_mask=scores[: line.size(2), :seq], scale=scaling
    )
    return output.reshape(1, kv_heads, seq, -1, head_dim).transpose(1, 2).flatten(2, 3)


def spell_out(cu_seq_lens: Tensor, prefix_lengths: Tensor) -> Tensor:
    """Give who sees whom in a pack as one mask, for any other attention, and to look at.

    Args:
        cu_seq_lens: (examples + 1,): where examples begin, and the end.
        prefix_lengths: (examples,).

    Returns:
        Whether a token (row) may attend to another (column): bool, (seq, seq).
    """
    lengths = cu_seq_lens.diff().long()
    order = torch.arange(int(cu_seq_lens[-1]), device=cu_seq_lens.device)
    example = torch.repeat_interleave(torch.arange(len(lengths), device=order.device), lengths)
    is_prefix = order < (cu_seq_lens[:-1] + prefix_lengths)[example]
    same = example[:, None] == example[None, :]
    return same & (is_prefix[None, :] | (order[None, :] <= order[:, None]))


def packed_mask(
    *,
    attention_mask: Tensor | None = None,
    q_length: int,
    kv_length: int,
    local_size: int | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """No mask for what is causal by itself; else what `sdpa` would get.

    `local_size` is how many tokens one sees at most, itself included; None is all before it.
    """
    sees_all = local_size is None or q_length <= local_size
    if attention_mask is None and q_length == kv_length and sees_all:
        return None
    return sdpa_mask(
        attention_mask=attention_mask,
        q_length=q_length,
        kv_length=kv_length,
        local_size=local_size,
        **kwargs,
    )


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
