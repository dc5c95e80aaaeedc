"""Replay a function on a GPU as one CUDA graph, so that its kernels need no launch each.

A model that writes one token launches hundreds of small kernels, and the launches take longer than
the work. A graph records them once, with the addresses of all tensors, and replays them by a single
launch:

    capture   work()  ->  graph, output        replay   the same kernels on what tensors hold now

So `work` reads and writes only tensors that stay where they are, and waits for nothing. It is
called for a warm-up first, after which what it has changed is restored. Where a graph cannot be
captured, the function is called each time, and one line of the log says why.

Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import logging
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from glmtune import gc_pause

logger = logging.getLogger(__name__)

MOST_GRAPHS = 32  # then all are forgotten
WARM_UPS = 2  # calls before the capture: libraries allocate, and kernels are compiled


class CapturedCalls:
    """One graph for each kind of call. They share their memory, since one is replayed at a time."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._memory: Any = None  # of all graphs
        self._has_failed = False

    @property
    def num_graphs(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def call(self, kind: Hashable, work: Callable[[], Tensor], state: Tensor) -> Tensor:
        """Call a function, or replay it.

        Args:
            kind: of the call; two calls of one kind run the same kernels on the same tensors.
            work: the function.
            state: is what it changes, if anything; on any but a CUDA device it is called.

        Returns:
            What it returns, which the next call of the same kind overwrites.
        """
        if state.device.type != "cuda" or self._has_failed:
            return work()
        if kind not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                self.clear()
            try:
                self._graphs[kind] = self._capture(work, state)
            except Exception as error:  # of torch, a library or a compiler, in any layer
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._has_failed = True
                reason = (str(error) or repr(error)).splitlines()[0]
                logger.warning("a step could not be captured as a CUDA graph: %s", reason)
                return work()
        graph, output = self._graphs[kind]
        graph.replay()
        return output

    def clear(self) -> None:
        """Forget all graphs, since tensors have moved or are no longer what they were."""
        if self._graphs:
            torch.cuda.synchronize()  # one may still run
        self._graphs.clear()
        self._memory = None

    def _capture(
        self, work: Callable[[], Tensor], state: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        stream = _stream(state.device)
        current = torch.cuda.current_stream(state.device)
        stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        # A collection may free a tensor of the device, which must not happen within a capture.
        with torch.cuda.stream(stream), gc_pause.paused():
            before = state.clone()
            for _ in range(WARM_UPS):
                work()
            state.copy_(before)
            stream.synchronize()
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
            try:
                output = work()
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return graph, output


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of captures; cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
