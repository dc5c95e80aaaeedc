"""What a training loop needs of the way that processes share the work.

    engine       weights                       gradients, optimizer state     written by
    plain        a copy in every process       the same                       rank 0
    FSDP2        a shard in every process      a shard                        rank 0, gathered
    DeepSpeed    a copy in every process       a shard (ZeRO stages 1, 2)     every process its own

    for each micro-batch:   with engine.accumulate(is_last), engine.autocast():   loss
                            engine.backward(loss)
    once a step:            norm = engine.clip(max_grad_norm)
                            engine.step(norm)

All processes call `accumulate`, `backward`, `clip`, `step`, `collect` and `gather_trained`
together.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glmtune.train.processes import Processes


class NonFiniteGradientError(Exception):
    """A gradient is not finite although the loss is; the loop adds the rows to the message.

    Attributes:
        norm: of the gradient.
        culprit: what is known of the parameter, to follow the norm in a sentence; may be empty.
        remedy: whether weights changed, and what to do.
    """

    def __init__(self, norm: float, culprit: str, remedy: str) -> None:
        super().__init__(norm)
        self.norm, self.culprit, self.remedy = norm, culprit, remedy


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What an optimizer step did.

    Attributes:
        grad_norm: the gradient's 2-norm before clipping.
        was_skipped: whether a scaled gradient overflowed float16, so that no weight changed.
    """

    grad_norm: float
    was_skipped: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """What a checkpoint takes from an engine.

    Attributes:
        tensors: the trained tensors, where the model of rank 0 holds only a shard of them.
        optimizer: the state of the optimizer; or a folder into which every process has written
            its shard, to be moved into the checkpoint.
    """

    tensors: Mapping[str, Tensor] | None
    optimizer: dict[str, Any] | Path


class Engine(Protocol):
    """One way to share the work of a step among processes.

    Attributes:
        model: the wrapped model, to call in a step.
        optimizer, scheduler: over what is trained; None where nothing is.
        scaler: of the loss, enabled where gradients pass through float16.
        processes: that share the work.
        can_run_alone: whether one process can call the model without the others.
        has_plain_gradients: whether gradients are in `parameter.grad` between `backward` and
            `step`, where they can be inspected and discarded.
    """

    model: Any
    optimizer: Any
    scheduler: Any
    scaler: torch.amp.GradScaler
    processes: Processes
    can_run_alone: bool
    has_plain_gradients: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute products in the half precision of the recipe, if it asks for one."""

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Add a micro-batch's gradients; processes exchange them at the step's last one only."""

    def backward(self, loss: Tensor) -> None:
        """Compute gradients of a loss, which are averaged over processes."""

    def clip(self, max_grad_norm: float | None) -> Tensor | None:
        """Clip the gradient, and return its 2-norm before, which has not been waited for.

        None where the engine clips when it steps.
        """

    def step(self, grad_norm: float | None) -> StepOutcome:
        """Step the optimizer and then the learning rate.

        Args:
            grad_norm: what `clip` returned.

        Raises:
            NonFiniteGradientError: the gradient is not finite, and no scaler expects that.
        """

    def unwrapped(self) -> Any:
        """Return the model without what processes wrap it in."""

    def collect(self, output: Path) -> Collected:
        """Return what a checkpoint in `output` takes; complete on rank 0 only."""

    def restore(self, checkpoint: Path) -> None:
        """Restore the optimizer's state; the weights are restored before the engine is made."""

    def gather_trained(self) -> Mapping[str, Tensor] | None:
        """Gather the trained tensors on rank 0; None where its model holds them all."""

    def release(self) -> nn.Module:
        """End the processes' common work, and give the model without its wrapper."""
