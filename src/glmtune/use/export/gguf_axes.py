"""Rows and columns of ChatGLM's matrices in the order and the number that llama.cpp expects.

llama.cpp expects queries, then keys, then values, and heads that are together as wide as the hidden
state. Two kinds of checkpoint are otherwise:

- Without groups of query heads the rows are head by head: q0 k0 v0 q1 k1 v1 ...
- `num_attention_heads * kv_channels` may be another number than `hidden_size`. Then the narrower
  side is widened by zeros: by channels that are always 0, and by heads that nothing reads. RMSNorm
  would divide by the new width, so its weights and its epsilon make up for it. The result is exact.

    axis    rows or columns of                      order
    hidden  embedding, norms, inputs of layers      0 1 2 .. -1 -1          -1 is a zero
    heads   queries, and the input of attn_output   the heads of a group, then its new ones
    fused   query_key_value                         heads, keys, values

A LoRA matrix has one such axis, and is widened with the weight that it belongs to.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from glmtune.use.export.gguf_names import Shape

_AXES: dict[str, tuple[str, ...]] = {  # of weights and biases: (rows, columns)
    "token_embd": ("", "hidden"),
    "output": ("", "hidden"),
    "output_norm": ("hidden",),
    "attn_norm": ("hidden",),
    "ffn_norm": ("hidden",),
    "attn_qkv": ("fused", "hidden"),
    "attn_q": ("heads", "hidden"),
    "attn_k": ("", "hidden"),
    "attn_v": ("", "hidden"),
    "attn_output": ("hidden", "heads"),
    "ffn_up": ("", "hidden"),
    "ffn_down": ("hidden", ""),
}
_NORMS = ("output_norm", "attn_norm", "ffn_norm")


@dataclass(frozen=True)
class Axes:
    """How the tensors of one checkpoint are reordered and widened.

    Attributes:
        shape: of the checkpoint.
    """

    shape: Shape

    @cached_property
    def heads(self) -> int:
        """Query heads in the GGUF: a multiple of the groups, at least as wide as hidden."""
        shape = self.shape
        least = math.ceil(shape.hidden / shape.head_dim)
        return max(shape.heads, shape.kv_heads * math.ceil(least / shape.kv_heads))

    @property
    def hidden(self) -> int:
        """Width of the hidden state in the GGUF."""
        return self.heads * self.shape.head_dim

    @property
    def epsilon(self) -> float:
        """Of RMSNorm over the width in the GGUF."""
        return self.shape.epsilon * self.shape.hidden / self.hidden

    @cached_property
    def _orders(self) -> dict[str, Tensor | None]:
        """By axis: for each new index the old one, or -1 for a zero; None where nothing changes."""
        shape = self.shape
        orders = {"": None, "hidden": _widened(shape.hidden, self.hidden)}
        in_group, wide = shape.heads // shape.kv_heads, self.heads // shape.kv_heads
        head = torch.arange(shape.heads).view(shape.kv_heads, in_group)
        head = torch.nn.functional.pad(head, (0, wide - in_group), value=-1).flatten()
        rows = _rows_of(head, shape.head_dim)
        group = shape.kv_heads * shape.head_dim
        if shape.is_interleaved:
            of_head = torch.arange(shape.kv_heads)
            parts = [_rows_of(head, shape.head_dim, 3, 0)]
            parts += [_rows_of(of_head, shape.head_dim, 3, part) for part in (1, 2)]
            fused = torch.cat(parts)
        else:
            first = shape.heads * shape.head_dim
            fused = torch.cat((rows, torch.arange(first, first + 2 * group)))
        for name, order in (("heads", rows), ("fused", fused)):
            is_same = torch.equal(order, torch.arange(len(order)))
            orders[name] = None if is_same else order
        return orders

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """Reorder and widen a tensor.

        Args:
            name: in the GGUF: of a weight, a bias, or `lora_a` and `lora_b` of a weight.
            tensor: of the checkpoint, with its dtype.
        """
        path, _, leaf = name.rpartition(".")
        axes = self._axes(name)
        for dim, axis in enumerate(axes):
            if (order := self._orders[axis]) is not None:
                tensor = _take(tensor, order, dim)
        module = path.rpartition(".")[2]
        if module in _NORMS and leaf == "weight" and self.hidden != self.shape.hidden:
            return tensor.float() * math.sqrt(self.shape.hidden / self.hidden)
        return tensor

    def new_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that `apply` gives to a tensor of this name."""
        orders = [self._orders[axis] for axis in self._axes(name)]
        return tuple(
            size if order is None else len(order) for size, order in zip(shape, orders, strict=True)
        )

    def _axes(self, name: str) -> tuple[str, ...]:
        path, _, leaf = name.rpartition(".")
        if leaf in ("lora_a", "lora_b"):
            rows, columns = _AXES[path.removesuffix(".weight").rpartition(".")[2]]
            return ("", columns) if leaf == "lora_a" else (rows, "")
        axes = _AXES[path.rpartition(".")[2]]
        return axes[:1] if leaf == "bias" else axes


def _widened(size: int, wide: int) -> Tensor | None:
    if size == wide:
        return None
    return torch.cat((torch.arange(size), torch.full((wide - size,), -1)))


def _rows_of(heads: Tensor, head_dim: int, num_parts: int = 1, part: int = 0) -> Tensor:
    """Return the rows of heads, each of which has this many parts of `head_dim` rows."""
    first = (heads * num_parts + part) * head_dim
    rows = first[:, None] + torch.arange(head_dim)
    return rows.masked_fill((heads < 0)[:, None], -1).flatten()


def _take(tensor: Tensor, order: Tensor, dim: int) -> Tensor:
    """Select along a dimension; -1 gives zeros."""
    taken = tensor.index_select(dim, order.clamp(min=0))
    return taken.index_fill(dim, (order < 0).nonzero().flatten(), 0)
