"""Attention of a decode step: one new token of each slot, to all tokens of the slot up to it.

    keys of one layer, (rows, kv_heads, room, head_dim)
    slot 0   A A A A A a . .     place 5       the places are on the device, so that the host need
    slot 1   B B b . . . . .     place 2       not know them: a step can be recorded and replayed

torch's attention with a mask reads all of the room, however little of it is filled: of ChatGLM3-6B
28 KiB for each token, so 128 slots of 2,048 tokens are 7 GiB a step, beside 12 GiB of weights. On a
GPU Triton's kernel reads what is filled (`glmtune.kernels.triton_decode`), where a probe finds that
it works.
"""

import functools
import logging
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

HEAD_DIMS = (16, 32, 64, 128, 256)  # of Triton's kernels


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
        if kernels := decode_kernels(query.device, query.dtype, query.size(-1)):
            scale = query.size(-1) ** -0.5 if scaling is None else scaling
            output: Tensor = kernels.attend(
                query[0].transpose(0, 1), key, value, self.place, scale,
                sliding_window or self.room, 0,
            )  # fmt: skip
            return output.unsqueeze(0)
        return self.attend_by_mask(query, key, value, scaling, sliding_window)

    def attend_by_mask(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> Tensor:
        """Do what `attend` does by torch's attention and a mask."""
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


@functools.cache
def decode_kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> ModuleType | None:
    """Return Triton's kernels if they give what torch gives; a failure is logged once.

    Args:
        device: of the queries.
        dtype: of the queries.
        head_dim: of the queries.
    """
    if device.type != "cuda" or head_dim not in HEAD_DIMS:
        return None
    try:
        from glmtune.kernels import triton_decode

        for rows in (1, 200):  # in parts, and whole
            _probe(triton_decode, rows, device, dtype, head_dim)
    except Exception as error:  # a compiler for many cards may fail in any way
        reason = (str(error) or repr(error)).splitlines()[0]
        logger.info("tokens are decoded without Triton's attention on %s: %s", device, reason)
        return None
    return triton_decode


def _probe(
    kernels: ModuleType, rows: int, device: torch.device, dtype: torch.dtype, head_dim: int
) -> None:
    """Compare the kernels with torch."""
    room, pairs = 192, head_dim // 4
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    check = functools.partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance)
    wave = torch.linspace(0, 999, (rows + 1) * 2 * room * head_dim, device=device)
    key, value = (
        of(wave).to(dtype).view(rows + 1, 2, room, head_dim) for of in (torch.sin, torch.cos)
    )
    at = torch.arange(rows, device=device)
    place = (at * 29 % room + (room - 1) // rows).clamp_(max=room - 1)
    fused = value[:rows, 0, 5:15].flatten(1)  # 6 queries, 2 keys, 2 values
    angles = wave[: rows * pairs].view(rows, pairs)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    heads = fused.view(rows, 10, head_dim)
    turned = heads[:, :8, : 2 * pairs].float().reshape(rows, 8, pairs, 2)
    turn = torch.complex(cos.float(), sin.float())[:, None]
    turned = torch.view_as_real(torch.view_as_complex(turned) * turn).flatten(-2).to(dtype)
    rotated = torch.cat((turned, heads[:, :8, 2 * pairs :]), dim=-1)
    query, new = rotated[:, :6], (rotated[:, 6:], heads[:, 8:])
    expected = key.clone(), value.clone()
    for buffer, states in zip(expected, new, strict=True):
        buffer[at, :, place] = states
    slots = DecodeSlots(place, room)
    with sdpa_kernel(SDPBackend.MATH):  # the others may round float32 to fewer bits
        attended = slots.attend_by_mask(
            query.transpose(0, 1)[None], expected[0][:rows], expected[1][:rows], 0.1, None
        )[0]

    stored = key.clone(), value.clone()
    kernels.store(*new, at, place, *stored)
    assert all(torch.equal(*pair) for pair in zip(stored, expected, strict=True))
    found = kernels.attend(query, *stored, place, 0.1, room, 0)
    check(found, attended)
    stored = key.clone(), value.clone()
    found = kernels.rotate_store_attend(fused, cos, sin, at, place, *stored, 0.1, 0)
    check(found, attended)
    check(stored, expected)
