"""Tensors without data that code for CPUs takes for its own, and the bytes of all that are alive.

A tensor on `meta` has a shape, a dtype and a lifetime, but its device is "meta", and code that asks
for the device goes another way than on a CPU. `HostShape` is such a tensor with the device "cpu".
Real tensors, such as token ids, may be mixed with it; whatever is computed from both has no data.
torch's FakeTensor does the same and more, at ten times the time for each operation.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, META = torch.device("cpu"), torch.device("meta")


class HostShape(Tensor):
    """A tensor without data, with the device "cpu".

    Attributes:
        on_meta: the same on `meta`, which holds shape, strides and storage.
    """

    on_meta: Tensor

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> "HostShape":
        """Wrap a tensor on `meta`."""
        wrap: Any = Tensor._make_wrapper_subclass
        made: HostShape = wrap(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
        )
        made.on_meta = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Show what there is, which is no data."""
        return f"HostShape({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch passes the operation first
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute the shape of a result on `meta`, or remember it."""
        given = dict(kwargs or {})
        kind = _kind_of(func)
        if kind.written is not None:
            return _written_arguments(kind.written, args, given)
        args = _positions_for_masks(args)
        if not kind.is_new:
            return _lift(func(*map(_lower, args), **{k: _lower(v) for k, v in given.items()}))
        key = (func, _key_of(args), _key_of(tuple(given.items())))
        if key not in _known_results:
            result = func(*map(_lower, args), **{k: _lower(v) for k, v in given.items()})
            _known_results[key] = _layout_of(result)
            return _lift(result)
        return _make(_known_results[key])


_known_results: dict[Any, Any] = {}  # of operations that make new tensors; some thousands at most


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an operation does with storage.

    Attributes:
        written: for an operation that returns nothing but arguments that it has written, which of
            them: position and name; otherwise None.
        is_new: whether every result has a storage of its own.
    """

    written: tuple[tuple[int, str], ...] | None
    is_new: bool


@functools.cache
def _kind_of(func: Any) -> _Kind:
    schema = func._schema
    if schema.is_mutable and torch.Tag.inplace_view not in func.tags:
        places = {
            tuple(argument.alias_info.before_set): (index, argument.name)
            for index, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        returned = [each.alias_info for each in schema.returns]
        if all(each is not None and tuple(each.before_set) in places for each in returned):
            return _Kind(tuple(places[tuple(each.before_set)] for each in returned), False)
    has_aliases = schema.is_mutable or any(each.alias_info for each in schema.returns)
    return _Kind(None, not has_aliases and func is not torch.ops.aten._unsafe_view.default)


def _written_arguments(
    written: tuple[tuple[int, str], ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    found = [args[index] if index < len(args) else kwargs[name] for index, name in written]
    return None if not found else found[0] if len(found) == 1 else tuple(found)


def _lower(value: Any) -> Any:
    """Replace tensors and devices in an argument by those on `meta`."""
    if isinstance(value, HostShape):
        return value.on_meta
    if isinstance(value, Tensor):
        return torch.empty_like(value, device=META)
    if isinstance(value, list | tuple):
        return [_lower(each) for each in value]
    return META if isinstance(value, torch.device) else value


def _lift(result: Any) -> Any:
    """Replace tensors on `meta` in a result."""
    if isinstance(result, Tensor):
        return HostShape(result)
    return type(result)(map(_lift, result)) if isinstance(result, list | tuple) else result


def _key_of(value: Any) -> Any:
    """Return what of an argument decides the shape of a result."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(_key_of, value))
    return (type(value), value)  # 1, 1.0 and True are equal


def _layout_of(result: Any) -> Any:
    """Return what `_make` makes the same result of."""
    if isinstance(result, Tensor):
        return (_NEW, tuple(result.shape), result.stride(), result.dtype)
    if isinstance(result, list | tuple):
        return [_layout_of(each) for each in result]
    return result


_NEW = object()


def _make(layout: Any) -> Any:
    if isinstance(layout, list):
        return tuple(map(_make, layout))
    if not isinstance(layout, tuple):
        return layout
    _, shape, stride, dtype = layout
    return HostShape(torch.empty_strided(shape, stride, dtype=dtype, device=META))


def _positions_for_masks(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace a boolean index by positions: only the real mask knows how many it selects."""
    return tuple(
        [
            position
            for index in arg
            for position in (index.nonzero().unbind(1) if _is_mask(index) else (index,))
        ]
        if isinstance(arg, list | tuple) and any(map(_is_mask, arg))
        else arg
        for arg in args
    )


def _is_mask(index: Any) -> bool:
    is_real = isinstance(index, Tensor) and not isinstance(index, HostShape)
    return is_real and index.dtype == torch.bool


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the bytes of live tensors and their peak.

    torch keeps one Python object for each storage as long as the storage lives, so a weak reference
    to it tells when the memory is freed.

    Args:
        granularity: an allocation takes a multiple of so many bytes.
        hidden_bytes: what an operation takes within, given the operation and its arguments.
    """

    def __init__(
        self,
        granularity: int = 1,
        hidden_bytes: Callable[[Any, tuple[Any, ...]], int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._granularity = granularity
        self._hidden_bytes = hidden_bytes
        self._storages: dict[int, weakref.ref[UntypedStorage]] = {}

    @property
    def alive(self) -> int:
        """The bytes of all tensors that are alive."""
        return self._alive

    def track(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that exist already, and return their bytes."""
        before = self._alive
        for tensor in tensors:
            self._add(tensor)
        return self._alive - before

    def reset_peak(self) -> None:
        """Set the peak to what is alive now."""
        self.peak = self._alive

    def _add(self, tensor: Tensor) -> None:
        inner = tensor.on_meta if isinstance(tensor, HostShape) else tensor
        storage = inner.untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        size = -(-storage.nbytes() // self._granularity) * self._granularity

        def forget(_: object) -> None:
            self._alive -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count the tensors that it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        if self._hidden_bytes is not None and (hidden := self._hidden_bytes(func, args)):
            self.peak = max(self.peak, self._alive + hidden)
        return result
