"""Functions of the user that watch a run.

def watch(values):
    print(values["step"], values.get("loss"), values.get("eval_loss"))
    return values.get("eval_loss", 1) < 0.1  # True ends the run here

glmtune.fine_tune("nano", rows, callbacks=[watch])
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Callback = Callable[[Mapping[str, Any]], object]
"""Called with each line of metrics once it is written, `step` and others as `metrics.jsonl` has
them: one with `loss` every `training.logging_steps`, one with `eval_loss` after each evaluation. If
it returns True the run ends after this step as early stopping ends it: with a checkpoint, its files
and its proofs. Each process of a run calls it, so all must decide alike: by a loss, not by a clock.
An error that it raises ends the run.
"""


class Callbacks:
    """The callbacks of a run, and whether one of them has asked to end it."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)
        self.want_to_stop = False

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Call all of them with a line of metrics."""
        for callback in self._callbacks:
            if callback(dict(values)) is True:
                self.want_to_stop = True
