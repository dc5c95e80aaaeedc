"""The progress bar of a run: loss, tokens per second, time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar on a terminal; hidden elsewhere, where the log lines show the same."""

    def __init__(self, num_steps: int, done: int = 0, is_shown: bool = True) -> None:
        self._bar = RichProgress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:.0f} tokens/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.disable = not (is_shown and self._bar.console.is_terminal)
        self._task = self._bar.add_task(
            "", total=num_steps, completed=done, loss=float("nan"), rate=0.0
        )
        self._last = time.perf_counter()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, loss: float, tokens: int) -> None:
        """Count one step, with its mean loss and its tokens."""
        now = time.perf_counter()
        rate = tokens / max(now - self._last, 1e-9)
        self._last = now
        self._bar.update(self._task, advance=1, loss=loss, rate=rate)
