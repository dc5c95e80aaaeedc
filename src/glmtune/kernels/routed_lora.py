"""LoRA of several adapters over one base, in one pass: each token has the update of its own.

    pack        a  b  C  C  C  d        of sequences a, b, C, d
    adapter     x  -  x  x  x  y        "" is the base alone

    y = x W^T  for all tokens,  then  y[tokens of x] += scale * B_x A_x x  for each adapter in use

A captured step cannot depend on how many tokens an adapter has: there the update of each adapter in
use is computed for all rows, of which there are few, and taken for its own.

Source: S-LoRA, https://arxiv.org/abs/2311.03285; the arithmetic of one adapter is peft's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Router:
    """Says which tokens of the next pass belong to which adapter."""

    def __init__(self) -> None:
        self._tokens: dict[str, Tensor] = {}
        self._slots: dict[str, Tensor] = {}
        self._num_tokens = 0
        self._is_own: dict[str, Tensor] = {}
        self._in_use: tuple[str, ...] = ()
        self._is_fixed = False

    def assign(self, adapters: Sequence[str], lengths: Sequence[int], device: Any) -> None:
        """Prepare the next pass.

        Args:
            adapters: of every sequence of the pack; "" is the base alone.
            lengths: its number of tokens in the pack.
            device: of the model.
        """
        self._is_fixed = False
        self._num_tokens = sum(lengths)
        slot_of_token = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        self._tokens, self._slots = {}, {}
        for name in sorted(set(adapters) - {""}):
            has_adapter = torch.tensor([each == name for each in adapters])
            self._slots[name] = has_adapter.nonzero()[:, 0].to(device)
            self._tokens[name] = has_adapter[slot_of_token].nonzero()[:, 0].to(device)

    def assign_rows(
        self, adapters: Sequence[str], num_rows: int, device: torch.device
    ) -> tuple[str, ...]:
        """Prepare passes of one token each of some sequences, in tensors that stay where they are.

        Args:
            adapters: of every sequence.
            num_rows: the most sequences there may be.
            device: of the model.

        Returns:
            Which adapters are in use, which decides the kernels of the passes.
        """
        self._in_use = tuple(sorted(set(adapters) - {""}))
        for name in self._in_use:
            is_own = self._is_own.get(name)
            if is_own is None or len(is_own) != num_rows or is_own.device != device:
                self._is_own[name] = torch.zeros(num_rows, 1, dtype=torch.bool, device=device)
            padded = [each == name for each in adapters] + [False] * (num_rows - len(adapters))
            self._is_own[name].copy_(torch.tensor(padded)[:, None])
        self.use_rows()
        return self._in_use

    def use_rows(self) -> None:
        """Return to what `assign_rows` has prepared, if `assign` was called since."""
        self._is_fixed = True

    def own_rows(self, num_rows: int) -> Mapping[str, Tensor] | None:
        """Return by adapter whether a row is its own, (rows, 1), after `assign_rows`."""
        if not self._is_fixed:
            return None
        return {name: self._is_own[name][:num_rows] for name in self._in_use}

    def rows(self, num_rows: int) -> Mapping[str, Tensor]:
        """Return by adapter which rows of an input are its own.

        Args:
            num_rows: of the input: all tokens of the pack or, where a model has dropped the others
                to score the next token, the last of every sequence.
        """
        return self._tokens if num_rows == self._num_tokens else self._slots


class RoutedLora(nn.Module):
    """A layer with a LoRA of several adapters, each for the tokens that a router assigns to it.

    Args:
        base: the layer.
        router: of the model.
    """

    def __init__(self, base: nn.Module, router: Router) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        self._keys: dict[str, str] = {}  # a name may contain what a parameter's may not
        self._scales: dict[str, float] = {}
        self.router = router

    def add(self, name: str, lora_a: Tensor, lora_b: Tensor, scale: float) -> None:
        """Add an adapter.

        Args:
            name: of the adapter.
            lora_a: (rank, in).
            lora_b: (out, rank).
            scale: multiplies the update.
        """
        key = f"adapter_{len(self._keys)}"
        self._keys[name], self._scales[name] = key, scale
        self.lora_a[key] = nn.Parameter(lora_a, requires_grad=False)
        self.lora_b[key] = nn.Parameter(lora_b, requires_grad=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer, and the update of every adapter in use.

        Args:
            x: (..., rows, in).
            *args: of the layer.
            **kwargs: of the layer.
        """
        result: Tensor = self.base(x, *args, **kwargs)
        fixed = self.router.own_rows(x.size(-2))
        if fixed is not None:
            return self._update_all(result, x, fixed)
        for name, assigned in self.router.rows(x.size(-2)).items():
            key = self._keys.get(name)
            if key is None:
                continue
            rows = assigned.to(x.device)  # a model may be spread over several devices
            update = self._update(name, key, x.index_select(-2, rows))
            after = (result.index_select(-2, rows) + update).to(result.dtype)
            result = result.index_copy(-2, rows, after)
        return result

    def _update_all(self, result: Tensor, x: Tensor, own_rows: Mapping[str, Tensor]) -> Tensor:
        """Compute the updates of all rows, and use those of an adapter's own."""
        for name, is_own in own_rows.items():
            if (key := self._keys.get(name)) is not None:
                after = (result + self._update(name, key, x)).to(result.dtype)
                result = torch.where(is_own, after, result)
        return result

    def _update(self, name: str, key: str, x: Tensor) -> Tensor:
        lora_a, lora_b = self.lora_a[key], self.lora_b[key]
        update = nn.functional.linear(nn.functional.linear(x.to(lora_a.dtype), lora_a), lora_b)
        return update * self._scales[name]
