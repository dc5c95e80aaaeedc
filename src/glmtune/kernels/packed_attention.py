"""Attention over packs, for every model family: each example attends only to itself.

A pack is one row of concatenated examples; `cu_seq_lens_q` holds their boundaries. Attending
example by example costs what the examples cost, whereas a block-diagonal mask over the pack
would also compute all of its empty blocks. No mask is built:

    A A A B B       A  x                the same scores as for A and B alone,
                    A  x x              and no work for the empty blocks
                    A  x x x
                    B        x
                    B        x x

With `prefix_lengths`, the first tokens of each example attend to each other in both directions,
as part A of GLM's blank infilling does. These rows need no mask, and the rows below them a small
one:

    prefix 2        A  x x
                    A  x x
                    A  x x x

Virtual tokens (keys and values that a tuning method makes for every layer) precede each example,
and all of its tokens attend to them:

    virtual  A A A B B
       v v   x                          stored once per pack, however many examples it has
       v v   x x
       v v   x x x
       v v         x
       v v         x x

Where a family limits how far back a token attends (a sliding window, chunks), transformers makes
the mask of the whole pack as soon as the pack is longer than the limit, and each example uses its
own block of that mask.

On a CPU, for short examples, the query heads of one KV head are folded into the sequence axis, so
that each key is read, and its gradient summed, once for all of them. Row i of the folded query
belongs to token i // heads:

    heads a and b   Aa  x            0.6 of the time for 130 tokens and ChatGLM3's 16 heads per key,
                    Ab  x            and more than 1 from 512 tokens on, where the empty half of the
                    Aa  x x          block costs more than is saved
                    Ab  x x

On an accelerator the examples do not take turns: variable-length attention computes all of them in
one call, or, where a GPU cannot, bucketed attention in a few (`glmtune.kernels.varlen_attention`,
`bucketed_attention`). On Hopper, long examples have calls of their own (`long_attention`). None of
them waits for the GPU if it gets the `pack_layout` that was made with the pack.

Registered with transformers as `packed`, so a model of any family selects it by
`attn_implementation="packed"`. Without `cu_seq_lens_q` (in generation, or for padded batches)
it is transformers' own `sdpa`. On a GPU `flash_attention_2` reads the same argument.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from glmtune.kernels import long_attention, varlen_attention
from glmtune.kernels.bucketed_attention import attend_by_buckets
from glmtune.kernels.pack_layout import PackLayout

NAME = "packed"
MAX_FOLDED_TOKENS = 256  # the longest example whose query heads are folded on a CPU


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
    pack_layout: PackLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each example of a pack: causally, but in both directions within its prefix.

    Args:
        module: the attention layer.
        query: (1, heads, seq, head_dim) for a pack.
        key, value: (1, kv_heads, seq, head_dim); each serves heads / kv_heads query heads.
        attention_mask: None for a pack; or, with a sliding window or chunks, whether a token may
            attend to another, (1, 1, seq, seq).
        dropout: probability of dropping an attention weight.
        scaling: multiplies the scores.
        cu_seq_lens_q: int32, (examples + 1,): the start of each example, and the end.
        prefix_lengths: int32, (examples,): tokens at the start of each example that attend to each
            other in both directions. Without them everything is causal.
        virtual_tokens: for every layer keys and values, (1, kv_heads, number, head_dim), that
            precede each example.
        pack_layout: the same boundaries and prefixes, known on the host; without it they are read
            from the tensors in every layer, for which an accelerator has to wait.
        **kwargs: for `sdpa`, when this is not a pack.

    Returns:
        (1, seq, heads, head_dim), and None for the weights, which are never formed.

    Raises:
        ValueError: the arguments cannot be combined.
    """
    if cu_seq_lens_q is None:
        _check_no_pack_arguments(prefix_lengths, virtual_tokens)
        plain, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain, None
    _check_pack_arguments(attention_mask, prefix_lengths, virtual_tokens, kwargs)
    layout = pack_layout
    if layout is None or query.device.type == "cpu":
        layout = PackLayout.of(cu_seq_lens_q, prefix_lengths)
    virtual = None
    if virtual_tokens is not None:
        virtual = virtual_tokens[int(module.layer_idx)]  # type: ignore[arg-type]
    if query.device.type != "cpu":
        output = _attend_on_accelerator(
            query, key, value, layout, scaling, dropout, virtual,
            attention_mask is not None, kwargs.get("sliding_window"),
        )  # fmt: skip
        if output is not None:
            return output, None
    attend = partial(_attend, dropout=dropout, scaling=scaling)
    return _attend_one_by_one(
        attend, query, key, value, layout, cu_seq_lens_q, attention_mask, virtual, scaling,
        may_fold=query.device.type == "cpu" and not dropout,
    ), None  # fmt: skip


def _attend_on_accelerator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    scaling: float | None,
    dropout: float,
    virtual: tuple[Tensor, Tensor] | None,
    is_masked: bool,
    window: int | None,
) -> Tensor | None:
    """Attend in as few calls as the device can; None where only a mask says what may be seen."""
    may_use = not dropout and (not is_masked or window is not None)
    kind = (query.device, query.dtype, query.size(-1))
    if may_use and varlen_attention.works(*kind):
        together = partial(varlen_attention.attend_by_varlen, scaling=scaling)
        is_plain = virtual is None and not is_masked
        if is_plain and long_attention.takes(layout) and long_attention.works(*kind):
            return long_attention.attend_with_long(
                query, key, value, layout, scaling=scaling, others=together
            )
        return together(
            query, key, value, layout, virtual=virtual, window=window if is_masked else None
        )
    if is_masked:
        return None
    return attend_by_buckets(
        query, key, value, layout, scaling=scaling, dropout=dropout, virtual=virtual
    )


def _attend_one_by_one(
    attend: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    cu_seq_lens: Tensor,
    attention_mask: Tensor | None,
    virtual: tuple[Tensor, Tensor] | None,
    scaling: float | None,
    *,
    may_fold: bool,
) -> Tensor:
    """Attend example by example."""
    parts = [torch.split(tensor, list(layout.lengths), dim=2) for tensor in (query, key, value)]
    heads = query.size(1) // key.size(1)  # query heads per KV head
    may_fold = may_fold and heads > 1
    longest = max((length for length in layout.lengths if length <= MAX_FOLDED_TOKENS), default=0)
    outputs: list[Tensor] = []
    start = 0
    for q, k, v, prefix in zip(*parts, layout.prefixes, strict=True):
        end = start + q.size(2)
        if virtual is not None:
            outputs.append(_attend_after_virtual_tokens(attend, q, k, v, virtual, prefix))
        elif attention_mask is not None:
            block = attention_mask[:, :, start:end, start:end]
            outputs.append(attend(q, k, v, attn_mask=block))
        elif prefix:
            outputs += _attend_with_prefix(attend, q, k, v, prefix)
        elif may_fold and q.size(2) <= longest:
            bias = folded_causal_bias(cu_seq_lens, longest, heads, q.dtype)
            outputs.append(attend_with_folded_heads(q, k, v, bias, scaling))
        else:
            outputs.append(attend(q, k, v, is_causal=True))
        start = end
    return torch.cat(outputs, dim=1)


def _check_no_pack_arguments(prefix_lengths: Any, virtual_tokens: Any) -> None:
    for name, given in (("prefix_lengths", prefix_lengths), ("virtual_tokens", virtual_tokens)):
        if given is not None:
            raise ValueError(f"{name} applies to the examples of a pack: pass cu_seq_lens_q too.")


def _check_pack_arguments(
    attention_mask: Any, prefix_lengths: Any, virtual_tokens: Any, others: dict[str, Any]
) -> None:
    if attention_mask is not None and (prefix_lengths is not None or virtual_tokens is not None):
        raise ValueError(
            "a sliding window cannot be combined with prefix_lengths or virtual_tokens."
        )
    if others.get("softcap") is not None or others.get("s_aux") is not None:
        raise ValueError("capped attention scores and attention sinks are not supported for packs.")


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float,
    scaling: float | None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Attend within one example: (1, heads, seq, head_dim) -> (1, seq, heads, head_dim)."""
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=True,
    ).transpose(1, 2)


def _attend_with_prefix(
    attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, prefix: int
) -> list[Tensor]:
    """Attend in both directions within the prefix, and causally after it: the two outputs."""
    outputs = [attend(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix])]
    seq = query.size(2)
    if (rest := seq - prefix) > 0:
        may_attend = query.new_ones(rest, seq, dtype=torch.bool).tril(prefix)
        outputs.append(attend(query[:, :, prefix:], key, value, attn_mask=may_attend))
    return outputs


def _attend_after_virtual_tokens(
    attend: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    virtual: tuple[Tensor, Tensor],
    prefix: int,
) -> Tensor:
    """Attend to the virtual tokens of a layer, (1, kv_heads, number, head_dim), and the example."""
    keys, values = (
        torch.cat((first.to(own.dtype), own), dim=2)
        for first, own in zip(virtual, (key, value), strict=True)
    )
    seq, number = key.shape[2], virtual[0].shape[2]
    may_attend = key.new_ones(seq, number + seq, dtype=torch.bool).tril(number)
    may_attend[:, : number + prefix] = True
    return attend(query, keys, values, attn_mask=may_attend)


_bias_of_pack: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()


def folded_causal_bias(cu_seq_lens: Tensor, longest: int, heads: int, dtype: torch.dtype) -> Tensor:
    """Make the additive causal mask of folded query heads.

    It is 0 where a token may attend and -inf for later tokens. All layers save it for the backward
    pass, so there is one for each pack, kept for as long as the pack's `cu_seq_lens`.

    Args:
        cu_seq_lens: (examples + 1,), on a CPU; the same tensor in all layers.
        longest: tokens of the longest folded example; the upper left corner of the result serves a
            shorter one.
        heads: query heads per KV head.
        dtype: of the queries.

    Returns:
        (longest * heads, longest).
    """
    bias = _bias_of_pack.get(cu_seq_lens)
    if bias is None or bias.shape != (longest * heads, longest) or bias.dtype != dtype:
        is_later = torch.ones(longest, longest, dtype=torch.bool).triu(1)
        folded = is_later.repeat_interleave(heads, dim=0)
        bias = torch.zeros(folded.shape, dtype=dtype).masked_fill_(folded, -torch.inf)
        _bias_of_pack[cu_seq_lens] = bias
    return bias


def attend_with_folded_heads(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None
) -> Tensor:
    """Attend causally within an example, with the query heads of a KV head on the sequence axis.

    Args:
        query: (1, heads, seq, head_dim).
        key, value: (1, kv_heads, seq, head_dim).
        bias: of `folded_causal_bias`, for as many tokens or more.
        scaling: multiplies the scores.

    Returns:
        (1, seq, heads, head_dim).
    """
    kv_heads, seq, head_dim = key.shape[1:]
    folded = query.reshape(1, kv_heads, -1, seq, head_dim).transpose(2, 3).flatten(2, 3)
    output = F.scaled_dot_product_attention(
        folded, key, value, attn_mask=bias[: folded.size(2), :seq], scale=scaling
    )
    return output.reshape(1, kv_heads, seq, -1, head_dim).transpose(1, 2).flatten(2, 3)


def dense_mask(cu_seq_lens: Tensor, prefix_lengths: Tensor) -> Tensor:
    """Make the block-diagonal mask of a pack, for any other attention, and for display.

    Args:
        cu_seq_lens: (examples + 1,): the start of each example, and the end.
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
    """Make no mask where attention is plainly causal; otherwise the mask of `sdpa`.

    `local_size` is the number of tokens that one attends to at most, itself included; None is all
    earlier tokens.
    """
    attends_to_all = local_size is None or q_length <= local_size
    if attention_mask is None and q_length == kv_length and attends_to_all:
        return None
    return sdpa_mask(
        attention_mask=attention_mask,
        q_length=q_length,
        kv_length=kv_length,
        local_size=local_size,
        **kwargs,
    )


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Keep torch from choosing cuDNN's attention, and restore the setting on exit.

    On Hopper and later torch prefers it, and it makes a plan for every new length, which takes
    longer than the attention. The setting is global to the process, so it is changed only around
    work of our own, by one thread at a time.
    """
    before: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
