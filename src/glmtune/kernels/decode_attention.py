"""Attention of a decode step: one new token of each slot, to all tokens of the slot up to it.

keys of one layer, (rows, kv_heads, room, head_dim)
slot 0   A A A A A a . .     place 5       the places are on the device, so that the host need
slot 1   B B b . . . . .     place 2       not know them: a step can be recorded and replayed
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class DecodeSlots:
    """Where the tokens of a decode step belong, one for each of the first slots.

    Args:
        place: int64, (rows,): the place of each token in its slot.
        room: of every slot.
    """

    def __init__(self, place: Tensor, room: int) -> None:
        self.place, self.room = place, room
        self._biases: dict[tuple[torch.dtype, int | None], Tensor] = {}

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> Tensor:
        """Attend from one token of each slot to those up to itself.

        Args:
            query: (1, heads, rows, head_dim).
            key, value: (rows, kv_heads, room, head_dim).
            scaling: multiplies the scores.
            sliding_window: how many tokens one attends to, including itself; None is all.

        Returns:
            (1, rows, heads, head_dim).
        """
        rows, kv_heads, _, head_dim = key.shape
        # The query heads of a KV head take the place of tokens, so no key is copied.
        output = F.scaled_dot_product_attention(
            query[0].transpose(0, 1).reshape(rows, kv_heads, -1, head_dim),
            key,
            value,
            attn_mask=self.bias(query.dtype, sliding_window),
            scale=scaling,
        )  # (rows, kv_heads, heads / kv_heads, head_dim)
        return output.flatten(1, 2).unsqueeze(0)

    def bias(self, dtype: torch.dtype, sliding_window: int | None) -> Tensor:
        """Make what is added to the scores, (rows, 1, 1, room), once for all layers."""
        kind = dtype, sliding_window
        if kind not in self._biases:
            key_index = torch.arange(self.room, device=self.place.device)
            distance = self.place[:, None, None, None] - key_index
            is_hidden = distance < 0
            if sliding_window is not None:
                is_hidden |= distance >= sliding_window
            zeros = torch.zeros(is_hidden.shape, dtype=dtype, device=self.place.device)
            self._biases[kind] = zeros.masked_fill_(is_hidden, -torch.inf)
        return self._biases[kind]
