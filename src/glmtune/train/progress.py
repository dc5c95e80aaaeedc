"""The progress of a run: loss, tokens per second, time left; on a terminal or in a notebook."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from glmtune.messages import translate
from glmtune.prove.report.notebook import progress_html

CELL_SECONDS = 0.25  # between two updates of a notebook's cell


class Progress:
    """A bar on a terminal, a cell with the loss curve in a notebook.

    Elsewhere it is hidden, and the log lines show the same.
    """

    def __init__(self, num_steps: int, done: int = 0, is_shown: bool = True) -> None:
        console = Console(stderr=True)
        self._cell = _Cell(num_steps, done) if is_shown and console.is_jupyter else None
        self._bar = RichProgress(
            TextColumn(translate("training")),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(translate("loss") + " {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:.0f} " + translate("tokens/s")),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (is_shown and console.is_terminal) or console.is_jupyter,
        )
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
        if self._cell is not None:
            self._cell.close()

    def advance(self, loss: float, tokens: int) -> None:
        """Count one step, with its mean loss and its tokens."""
        now = time.perf_counter()
        rate = tokens / max(now - self._last, 1e-9)
        self._last = now
        self._bar.update(self._task, advance=1, loss=loss, rate=rate)
        if self._cell is not None:
            self._cell.advance(loss, rate)


class _Cell:
    """The output of a notebook's cell, which is replaced a few times a second.

    rich can draw its bar in a notebook only where ipywidgets is installed; replacing the output is
    a part of Jupyter itself.
    """

    def __init__(self, num_steps: int, done: int) -> None:
        self._num_steps, self._step, self._first = num_steps, done, done
        self._losses: dict[int, float] = {}
        self._rate = 0.0
        self._began = time.perf_counter()
        self._shown_at = 0.0
        self._handle: Any = None

    def advance(self, loss: float, rate: float) -> None:
        self._step += 1
        self._losses[self._step] = loss
        self._rate = rate
        if time.perf_counter() - self._shown_at >= CELL_SECONDS:
            self._show()

    def close(self) -> None:
        """Show the last step."""
        if self._losses:
            self._show()

    def _show(self) -> None:
        from IPython.display import HTML, display

        now = time.perf_counter()
        each = (now - self._began) / (self._step - self._first)
        html = HTML(  # type: ignore[no-untyped-call]
            progress_html(
                self._losses,
                self._num_steps,
                step=self._step,
                rate=self._rate,
                left=each * (self._num_steps - self._step) if self._step > 1 else None,
            )
        )
        if self._handle is None:
            self._handle = display(html, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(html)
        self._shown_at = now
