"""A row cache whose decode steps need nothing from the host, so that a GPU need not wait for it.

`RowCache` is told by the host, before each pass, where every new token belongs. Here tensors on the
device say it, and each step moves them on by itself:

              slot 0  slot 1  slot 2  (padding)        rows of a step: 1, 2, 4, 8, ...
    token        a       b       c        0            the input, which is the last step's output
    position     5       2       9        0            its position
    place        5       2       9        0            where in its slot its key and value go
    slot         0       1       2      spare          padding writes to a row that nobody uses

With fixed rows and room a step is always the same kernels on the same tensors. On a CUDA device it
is replayed as one graph; elsewhere it is called. A token attends up to its own place.

Prompts are computed as in `RowCache`, in the same buffers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from glmtune.kernels.captured import CapturedCalls
from glmtune.kernels.decode_attention import DecodeSlots, decode_kernels
from glmtune.kernels.routed_lora import RoutedLora
from glmtune.kernels.row_cache import RowCache, VirtualTokens, supports_row_cache

ROOM = 512  # tokens by which all slots grow, or by a quarter
TOKEN, POSITION, PLACE, SLOT, IS_USED = range(5)  # rows of the state


def supports_slot_cache(model: Any) -> bool:
    """Whether a model can decode from a `SlotCache`, on one CUDA device and in one graph.

    Hooks may do anything, so a model with hooks is called as usual, and so is one whose `forward`
    was replaced, as accelerate does.
    """
    if not supports_row_cache(model) or not getattr(model, "_can_compile_fullgraph", False):
        return False
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return (
        {device.type for device in devices} == {"cuda"}
        and len(devices) == 1
        and not any(
            module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
            for module in model.modules()
        )
    )


class SlotCache(RowCache):
    """Keys and values of up to `num_rows` rows, and the state of their decode steps.

    Args:
        num_rows: how many rows.
        virtual: precede every row.

    Attributes:
        dtype: of the scores of the last step.
    """

    def __init__(self, num_rows: int, virtual: VirtualTokens | None = None) -> None:
        super().__init__(num_rows, virtual, num_spare=1)
        self._calls = CapturedCalls()
        self._state = torch.zeros(5, num_rows, dtype=torch.long)
        self._model_state: _ModelState | None = None
        self._num_used = 0
        self.dtype = torch.float32
        self._adapters: tuple[str, ...] = ()

    @property
    def is_filled(self) -> bool:
        """Whether a prompt has been computed, which makes the buffers."""
        return bool(self._buffers)

    def look_at(self, model: Any) -> None:
        """Forget what was captured if the model has other modules, weights elsewhere or adapters.

        `begin` sees by itself that tensors have moved, or that an adapter was merged, changed or
        switched; other modules are seen here alone.
        """
        now = _ModelState(model)
        if self._model_state is None or not now.is_like(self._model_state):
            self._calls.clear()
        self._model_state = now

    def begin(
        self,
        model: Any,
        tokens: Sequence[int],
        pasts: Sequence[int],
        num_steps: int,
        adapters: Sequence[str] = (),
    ) -> None:
        """Prepare decode steps.

        Args:
            model: in evaluation mode.
            tokens: the next token of each of the first rows.
            pasts: how many real tokens of each row are cached.
            num_steps: how many steps there will be at most.
            adapters: of each row, where a `RoutedLora` has several.
        """
        places = [past + self.virtual.number for past in pasts]
        self._make_room(max(places) + num_steps)
        if self._model_state is None or self._model_state.has_changed():
            self.look_at(model)
        assert self._model_state is not None
        for router in self._model_state.routers:
            self._adapters = router.assign_rows(adapters, self.num_rows, model.device)
        positions = [past + self.virtual.num_positions for past in pasts]
        self._num_used = len(tokens)
        rows, used = self._num_stepped, [1] * len(tokens)
        padding = [0] * (rows - len(tokens))
        slots = [*range(len(tokens)), *(self.num_rows for _ in padding)]
        state = [[*each, *padding] for each in (tokens, positions, places)]
        host = torch.tensor([*state, slots, [*used, *padding]])
        if self._state.device != model.device:
            self._state = self._state.to(model.device)
        self._state[:, :rows].copy_(host)

    def decode(self, model: Any) -> Tensor:
        """Compute one step of the rows in use, without waiting for it.

        Returns:
            The scores of the next tokens, (rows, vocab), until the next step.
        """
        return self._call("scores", partial(self._score, model))[: self._num_used]

    def decode_greedily(self, model: Any) -> Tensor:
        """Compute one step of the rows in use, and take the likeliest tokens as the next input.

        Returns:
            Those tokens, int64, (rows,), -1 where scores are not finite; until the next step.
        """

        def work() -> Tensor:
            scores = self._score(model)
            tokens = scores.argmax(-1)
            state = self._state[:, : len(tokens)]
            state[TOKEN] = tokens
            state[POSITION:SLOT] += state[IS_USED]
            return marked(tokens, scores)

        return self._call("greedy", work)[: self._num_used]

    def _call(self, what: str, work: Callable[[], Tensor]) -> Tensor:
        """Call or replay a step."""
        assert self._model_state is not None, "decode steps begin with `begin`"
        for router in self._model_state.routers:
            router.use_rows()
        kind = what, self._num_stepped, self._room, self._adapters
        return self._calls.call(kind, work, self._state[:, : self._num_stepped])

    def _score(self, model: Any) -> Tensor:
        """Run a step: (rows of the step, vocab)."""
        state = self._state[:, : self._num_stepped]
        output = model(
            input_ids=state[None, TOKEN],
            position_ids=state[None, POSITION],
            past_key_values=DecodeView(self, state[SLOT], state[PLACE]),
            slots=DecodeSlots(state[PLACE], self._room),
            use_cache=True,
        )
        logits: Tensor = output.logits[0]
        self.dtype = logits.dtype
        return logits

    def advance(self, tokens: Tensor) -> None:
        """Take the next tokens, (rows,), as the input of the next step."""
        self._state[TOKEN, : self._num_used] = tokens
        self._state[POSITION:SLOT] += self._state[IS_USED]

    @property
    def _num_stepped(self) -> int:
        """Rows of a step: a few sizes, so that there are few graphs."""
        return min(1 << (self._num_used - 1).bit_length(), self.num_rows)

    def _make_room(self, num_tokens: int) -> None:
        if num_tokens <= self._room:
            return
        room = max(num_tokens, self._room + self._room // 4)
        self._room = -(-room // ROOM) * ROOM
        self._calls.clear()
        for layer_index, buffers in self._buffers.items():
            key, value = (self._with_room(buffer, buffer, None) for buffer in buffers)
            self._buffers[layer_index] = key, value


def marked(tokens: Tensor, scores: Tensor) -> Tensor:
    """Return tokens, (rows,), with -1 where scores, (rows, vocab), are not finite."""
    total = scores.sum(-1, dtype=torch.float32)  # is finite as they all are
    return torch.where(total - total == 0, tokens, -1)


class DecodeView(Cache):
    """The first rows of a `SlotCache` in a decode step, for the layers of a model."""

    def __init__(self, cache: SlotCache, slot: Tensor, place: Tensor) -> None:
        super().__init__(layers=[])
        self._cache, self._slot, self._place = cache, slot, place

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values, (1, kv_heads, rows, head_dim), and return those of all rows."""
        key, value = self._cache._buffers[layer_idx]
        new_key, new_value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        if kernels := decode_kernels(key.device, key.dtype, key.size(-1)):
            kernels.store(new_key, new_value, self._slot, self._place, key, value)
        else:
            key[self._slot, :, self._place] = new_key
            value[self._slot, :, self._place] = new_value
        rows = len(self._place)
        return key[:rows], value[:rows]

    @property
    def has_kernels(self) -> bool:
        """Whether `attend_fused` can be used."""
        key, _ = self._cache._buffers[0]
        return decode_kernels(key.device, key.dtype, key.size(-1)) is not None

    def attend_fused(
        self, fused: Tensor, cos: Tensor, sin: Tensor, scaling: float, layer_idx: int
    ) -> Tensor:
        """Rotate and store what a layer has projected, and attend, in two kernels at most.

        Args:
            fused: (1, rows, width): all queries, all keys, all values.
            cos, sin: (1, rows, pairs): of the angles of the first pairs of adjacent channels.
            scaling: multiplies the scores.
            layer_idx: of the layer.

        Returns:
            (1, rows, heads * head_dim).
        """
        key, value = self._cache._buffers[layer_idx]
        kernels = decode_kernels(key.device, key.dtype, key.size(-1))
        assert kernels is not None
        output: Tensor = kernels.rotate_store_attend(
            fused[0], cos[0].contiguous(), sin[0].contiguous(), self._slot, self._place,
            key, value, scaling, 0,
        )  # fmt: skip
        return output.flatten(1)[None]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of the cache."""
        return self._cache.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Of the cache."""
        return self._cache.get_mask_sizes(query_length, layer_idx)


class _ModelState:
    """What a graph of a model depends on besides numbers: modules, where tensors are, adapters.

    To look through all modules takes as long as a step, so it is done once, and what was found then
    is compared before each run of steps.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._modules = [(id(module), module.training) for module in modules]
        self._tensors = [*model.parameters(), *model.buffers()]
        # Layers of peft tell which adapters they apply.
        self._layers: list[Any] = [each for each in modules if hasattr(each, "merged_adapters")]
        self._found = self._look()
        self.routers = {each.router for each in modules if isinstance(each, RoutedLora)}

    def has_changed(self) -> bool:
        """Whether a tensor has moved, or an adapter was merged, changed or switched."""
        return self._look() != self._found

    def is_like(self, other: "_ModelState") -> bool:
        """Whether a graph of the other is one of this, too."""
        return self._modules == other._modules and self._found == other._found

    def _look(self) -> list[object]:
        found: list[object] = [tensor.data_ptr() for tensor in self._tensors]
        for layer in self._layers:
            found += [layer.disable_adapters, *layer.merged_adapters, None, *layer.active_adapters]
            found += getattr(layer, "scaling", {}).values()
        return found
