"""Attention over packs in one call for each power of two of the examples' lengths.

For GPUs without variable-length attention, and for float32. Examples of 1, 2, 3 to 4, 5 to 8, ...
tokens are each one batch, padded on the right:

    lengths  5 3 7 4        [3 .] [5 . .]       causal tokens never see what follows them,
                            [4  ] [7    ]       so padding on the right needs no mask

A pack of rows up to 8,192 tokens takes at most 14 calls, and about a third of what they compute is
padding. Keys and values are repeated for their query heads: torch's memory-efficient kernel, which
serves these GPUs, has no grouped queries, and another one would hold all scores.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.kernels.pack_layout import Bucket, PackLayout


def attend_by_buckets(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    *,
    scaling: float | None,
    dropout: float = 0.0,
    virtual: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend within each example of a pack.

    Args:
        query: (1, heads, seq, head_dim).
        key, value: (1, kv_heads, seq, head_dim).
        layout: of the pack.
        scaling: multiplies the scores.
        dropout: probability of dropping an attention weight.
        virtual: keys and values in front of every example, (1, kv_heads, number, head_dim).

    Returns:
        (1, seq, heads, head_dim).
    """
    repeats = query.size(1) // key.size(1)
    buckets, places = layout.buckets(query.device)
    outputs: list[Tensor] = []
    for bucket in buckets:
        queries, keys, values = (_rows(each, bucket) for each in (query, key, value))
        if virtual is not None:
            keys, values = (
                torch.cat((first.to(own.dtype).expand(own.size(0), -1, -1, -1), own), dim=2)
                for first, own in zip(virtual, (keys, values), strict=True)
            )
        may_attend = _mask(bucket, keys.size(2) - queries.size(2))
        output = F.scaled_dot_product_attention(
            queries,
            _repeat(keys, repeats),
            _repeat(values, repeats),
            attn_mask=may_attend,
            dropout_p=dropout,
            is_causal=may_attend is None,
            scale=scaling,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # (examples * longest, heads, ...)
    return torch.cat(outputs).index_select(0, places)[None]


def _rows(x: Tensor, bucket: Bucket) -> Tensor:
    """Take a bucket's examples: (1, heads, seq, head_dim) -> (examples, heads, longest, ...)."""
    examples, longest = bucket.rows.shape
    taken = x.squeeze(0).index_select(1, bucket.rows.flatten())
    return taken.view(taken.size(0), examples, longest, taken.size(2)).transpose(0, 1)


def _repeat(x: Tensor, repeats: int) -> Tensor:
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _mask(bucket: Bucket, num_virtual: int) -> Tensor | None:
    """Whether a token (row) of each example may attend to a key (column); None if just causal."""
    if bucket.prefixes is None and not num_virtual:
        return None
    longest, device = bucket.rows.size(1), bucket.rows.device
    own = torch.arange(longest, device=device)
    keys = torch.arange(-num_virtual, longest, device=device)
    may_attend = (keys <= own[:, None])[None]  # (1, longest, keys)
    if bucket.prefixes is not None:
        may_attend = may_attend | (keys < bucket.prefixes[:, None, None])
    return may_attend[:, None]
