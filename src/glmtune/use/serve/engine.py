"""Generate for many requests at once, in one thread that owns the model.

    submit --> waiting --join--> batch --leave--> done       a step is one token for each
                  ^                |
                  +--- preempt ----+        if others wait, a sequence gives up its place after a
                                            share of tokens; the cache may keep what it computed

A request joins between two tokens and leaves between two tokens: when it has ended, when its client
hangs up, or when its time is over. All random numbers of a sequence come from its own generator, so
who else is in the batch changes its scores by rounding only.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch

from glmtune.kernels.row_cache import RowCache, supports_row_cache
from glmtune.use.generate import Batch, Slot, make_cache, row_attention
from glmtune.use.serve.hosted import Hosted, Lane
from glmtune.use.serve.metrics import Metrics

logger = logging.getLogger(__name__)

Ending = Literal["", "done", "released", "timeout", "failed", "closed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes on.

    Attributes:
        max_batch: sequences at once.
        max_queue: sequences that may wait; more are refused.
        max_length: tokens of a prompt and its answer.
        max_new_tokens: of an answer.
        timeout_seconds: from a request to the end of its answer.
        num_kept: rows of the cache that keep the beginning of conversations.
        share_tokens: after so many, a sequence gives its place to one that waits.
        prompt_tokens: of all prompts, computed in a step.
    """

    max_batch: int = 32
    max_queue: int = 128
    max_length: int = 8192
    max_new_tokens: int = 2048
    timeout_seconds: float = 600.0
    num_kept: int = 16
    share_tokens: int = 64
    prompt_tokens: int = 512


class QueueFullError(Exception):
    """No more requests are taken; try again after some seconds.

    Args:
        retry_seconds: how many.
    """

    def __init__(self, retry_seconds: int) -> None:
        super().__init__(f"try again in {retry_seconds} seconds")
        self.retry_seconds = retry_seconds


@dataclass(eq=False)
class Job:
    """A sequence that somebody waits for.

    Attributes:
        lane: in which it is generated.
        slot: the sequence.
        notify: is called from the engine's thread when there is something new.
        num_reused: tokens of the prompt that were not computed.
        is_released: whether nobody waits for it any more.
        ending: why it is over; "" while it is not.
    """

    lane: Lane
    slot: Slot
    notify: Callable[[], None]
    began: float = field(default_factory=time.monotonic)
    num_reused: int = 0
    is_released: bool = False
    ending: Ending = ""
    _joined_at: int = 0  # tokens that it had when it joined


class Engine:
    """The thread that generates.

    Args:
        hosted: the models.
        limits: how much is taken on.
        metrics: counts what is done.
    """

    def __init__(self, hosted: Hosted, limits: Limits, metrics: Metrics) -> None:
        self.hosted, self.limits, self.metrics = hosted, limits, metrics
        self._change = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._running: dict[Slot, Job] = {}
        self._is_closing = False
        self._batches = {id(lane): self._make_batch(lane) for lane in hosted.lanes}
        self._thread = threading.Thread(target=self._run, name="glmtune-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End what is generated, and the thread."""
        with self._change:
            self._is_closing = True
            self._change.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """How many sequences wait for a place."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """How many sequences are generated now."""
        return len(self._running)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let sequences wait for a place, all or none.

        Raises:
            QueueFullError: too many wait already.
        """
        with self._change:
            if len(self._waiting) + len(jobs) > self.limits.max_queue:
                turns = -(-len(self._waiting) // self.limits.max_batch)
                seconds = turns * self.metrics.mean("request_seconds")
                raise QueueFullError(min(max(round(seconds), 1), 60))
            for job in jobs:
                self.metrics.add("prompt_tokens_total", len(job.slot.request.ids))
            self._waiting += jobs
            self._change.notify()

    def run_between_steps(self, errand: Callable[[], None]) -> None:
        """Run a function in the engine's thread, between two tokens of the others.

        Raises:
            QueueFullError: too many wait already.
        """
        with self._change:
            if len(self._errands) >= self.limits.max_queue:
                raise QueueFullError(1)
            self._errands.append(errand)
            self._change.notify()

    def release(self, job: Job) -> None:
        """Free the place of a sequence that nobody waits for any more."""
        with self._change:
            job.is_released = True
            self._change.notify()

    def _make_batch(self, lane: Lane) -> Batch:
        has_rows = supports_row_cache(lane.model)
        num_rows = self.limits.max_batch + self.limits.num_kept

        def assign(slots: Sequence[Slot], lengths: Sequence[int]) -> None:
            if lane.router is not None:
                adapters = [slot.group for slot in slots]
                lane.router.assign(adapters, lengths, lane.model.device)

        return Batch(
            lane.model,
            make_cache(lane.model, num_rows if has_rows else 1, lane.virtual),
            self.limits.max_batch,
            prompt_tokens=self.limits.prompt_tokens if has_rows else None,
            before_step=assign,
        )

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                for lane in self.hosted.lanes:
                    if supports_row_cache(lane.model):
                        stack.enter_context(row_attention(lane.model, RowCache(1)))
                while self._wait():
                    self._run_errand()
                    self._drop()
                    self._admit()
                    for lane in self.hosted.lanes:
                        self._step(lane)
        finally:  # nobody waits for a thread that is gone
            with self._change:
                self._is_closing = True
                left = [*self._running.values(), *self._waiting]
            for job in left:
                self._end(job, "closed")
            self._running.clear()
            self._waiting.clear()

    def _wait(self) -> bool:
        """Wait for something to do; False if the engine is closing."""
        with self._change:
            self._change.wait_for(
                lambda: self._is_closing or self._waiting or self._errands or self._running
            )
            return not self._is_closing

    def _run_errand(self) -> None:
        with self._change:
            errand = self._errands.popleft() if self._errands else None
        if errand is not None:
            errand()

    def _drop(self) -> None:
        """Remove sequences that nobody waits for, or whose time is over."""
        limit = time.monotonic() - self.limits.timeout_seconds
        for job in [job for job in self._running.values() if job.is_released or job.began < limit]:
            self._leave(job)
            self._end(job, "released" if job.is_released else "timeout")
        with self._change:
            over = [job for job in self._waiting if job.is_released or job.began < limit]
            for job in over:
                self._waiting.remove(job)
        for job in over:
            self._end(job, "released" if job.is_released else "timeout")

    def _admit(self) -> None:
        """Give free places to those who wait, and that of a long answer to the first of them."""
        while (job := self._next_waiting()) is not None:
            batch = self._batches[id(job.lane)]
            job._joined_at = len(job.slot.completion)
            batch.join(job.slot)
            if not job.slot.completion:
                job.num_reused = job.slot.num_cached
                self.metrics.add("cached_prompt_tokens_total", job.num_reused)
            self._running[job.slot] = job

    def _next_waiting(self) -> Job | None:
        """Take the first of those who wait, if there is a place or one can be made."""
        with self._change:
            if not self._waiting:
                return None
            job = self._waiting[0]
            batch = self._batches[id(job.lane)]
            is_full = len(self._running) >= self.limits.max_batch or not batch.num_free
            if is_full and not self._preempt(job.lane if not batch.num_free else None):
                return None
            return self._waiting.popleft()

    def _preempt(self, lane: Lane | None) -> bool:
        """Let the sequence that had most of its share wait; False if none had all of it."""
        tokens = {
            job: len(job.slot.completion) - job._joined_at
            for job in self._running.values()
            if lane is None or job.lane is lane
        }
        longest = max(tokens, key=tokens.__getitem__)
        if tokens[longest] < self.limits.share_tokens:
            return False
        self._leave(longest)
        self._waiting.append(longest)
        self.metrics.add("preemptions_total")
        return True

    def _leave(self, job: Job) -> None:
        self._batches[id(job.lane)].leave(job.slot)
        del self._running[job.slot]

    def _step(self, lane: Lane) -> None:
        batch = self._batches[id(lane)]
        if not batch.slots:
            return
        try:
            with lane.state():
                changed = batch.step()
        except Exception as error:  # of torch or the model: memory, a device, an operation
            self._fail(lane, error)
            return
        self.metrics.add("steps_total")
        now = time.monotonic()
        for slot in changed:
            job = self._running[slot]
            self.metrics.add("completion_tokens_total")
            if len(slot.completion) == 1:
                self.metrics.observe("first_token_seconds", now - job.began)
            if slot.is_finished:
                self._leave(job)
                self._end(job, "failed" if slot.failure else "done")
            else:
                job.notify()

    def _fail(self, lane: Lane, error: Exception) -> None:
        """End the sequences of a lane whose step failed, and begin it again."""
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        what = "out of memory" if is_memory else f"{type(error).__name__}: {str(error)[:200]}"
        logger.error("a step failed: %s", what)
        for job in [job for job in self._running.values() if job.lane is lane]:
            job.slot.failure = f"the model could not compute the next token: {what}"
            del self._running[job.slot]
            self._end(job, "failed")
        self._batches[id(lane)] = self._make_batch(lane)

    def _end(self, job: Job, ending: Ending) -> None:
        self.metrics.observe("request_seconds", time.monotonic() - job.began)
        job.ending = ending
        job.notify()
