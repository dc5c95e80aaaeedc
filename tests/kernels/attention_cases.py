"""Packs with all that attention over packs allows, for the tests of its kernels."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from glmtune.kernels.pack_layout import PackLayout
from glmtune.kernels.packed_attention import packed_attention

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


@dataclass(frozen=True)
class Case:
    """Queries, keys and values of a pack; all of them want a gradient."""

    lengths: list[int]
    prefixes: list[int] | None
    tensors: tuple[Tensor, ...]  # query, key, value, and those of the virtual tokens

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.tensors[0], self.tensors[1], self.tensors[2]

    @property
    def layout(self) -> PackLayout:
        return PackLayout(self.lengths, self.prefixes)

    @property
    def virtual(self) -> tuple[Tensor, Tensor] | None:
        return (self.tensors[3], self.tensors[4]) if len(self.tensors) > 3 else None

    def one_by_one(self) -> Tensor:
        """Attend as on a CPU: the examples take turns."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0).int()
        prefixes = None if self.prefixes is None else torch.tensor(self.prefixes)
        virtual = None if self.virtual is None else [self.virtual]
        layer: Any = SimpleNamespace(layer_idx=0)
        output, _ = packed_attention(
            layer, *self.qkv, None, scaling=0.3, cu_seq_lens_q=ends,
            prefix_lengths=prefixes, virtual_tokens=virtual,
        )  # fmt: skip
        return output

    def check(self, output: Tensor) -> None:
        """Compare an output and its gradients with those of the loop."""
        expected = self.one_by_one()
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
        weights = torch.randn_like(expected)
        of_output = torch.autograd.grad((output * weights).sum(), self.tensors)
        of_expected = torch.autograd.grad((expected * weights).sum(), self.tensors)
        torch.testing.assert_close(of_output, of_expected, atol=1e-5, rtol=1e-4)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(1, 19), min_size=1, max_size=6))
    prefixes = draw(st.none() | st.tuples(*(st.integers(0, n) for n in lengths)).map(list))
    number = draw(st.sampled_from((0, 0, 1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = [(HEADS, sum(lengths)), (KV_HEADS, sum(lengths)), (KV_HEADS, sum(lengths))]
    shapes += [(KV_HEADS, number)] * 2 if number else []
    made = (torch.randn(1, *shape, HEAD_DIM, generator=generator) for shape in shapes)
    return Case(lengths, prefixes, tuple(tensor.requires_grad_() for tensor in made))
