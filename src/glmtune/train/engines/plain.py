"""Every process holds the model and the optimizer: one process, or several with DDP.

accelerate wraps the model in DistributedDataParallel where there are several processes.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glmtune.model.files import read_saved
from glmtune.recipe.sections import TrainingSection
from glmtune.train.engines.engine import Collected, NonFiniteGradientError, StepOutcome
from glmtune.train.offload import OffloadedActivations
from glmtune.train.optimizer import make_optimizer, make_scheduler
from glmtune.train.precision import autocast, make_scaler
from glmtune.train.processes import Processes, seed_everything

logger = logging.getLogger(__name__)

OPTIMIZER = "optimizer.pt"


class PlainEngine:
    """Implements `Engine` without sharding; the others override what differs.

    Args:
        model: the same on every process, with its trained weights requiring a gradient.
        section: learning rate, precision, and the rest.
        processes: that train.
        num_steps: of the run; 0 where nothing is trained, and no optimizer is made.
        loraplus_lr_ratio: as for `make_optimizer`.
    """

    can_run_alone = True
    has_plain_gradients = True

    def __init__(
        self,
        model: Any,
        section: TrainingSection,
        processes: Processes,
        num_steps: int,
        loraplus_lr_ratio: float | None = None,
    ) -> None:
        if processes.process_index:  # each process draws its own dropout; weights start equal
            seed_everything(section.seed + processes.process_index)
        self.processes = processes
        self.optimizer: Any = None
        self.scheduler: Any = None
        if num_steps:
            self.optimizer = make_optimizer(model, section, loraplus_lr_ratio)
            self.scheduler = make_scheduler(self.optimizer, section, num_steps)
        self.scaler = make_scaler(section, model, processes.device)
        self._section = section
        self.model: Any = self._wrap(model) if num_steps else model
        is_asked = section.gradient_checkpointing == "offload"
        self._offloads = is_asked and processes.device.type != "cpu"
        if is_asked and not self._offloads:
            logger.info(
                "training.gradient_checkpointing=offload moves activations of a GPU to the memory "
                "of the host; this run is on a CPU, where it is the same as true"
            )

    def _wrap(self, model: Any) -> Any:
        return self.processes.accelerator.prepare(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the half precision of the recipe, and offload activations, where it asks."""
        half = autocast(self._section, self.processes.device)
        return self._offloading(half) if self._offloads else half

    @contextmanager
    def _offloading(self, half: AbstractContextManager[Any]) -> Iterator[None]:
        with half, OffloadedActivations(self.model):
            yield

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Let DDP exchange gradients only in the backward pass of the last micro-batch."""
        if is_last:
            return nullcontext()
        without: AbstractContextManager[Any] = self.processes.accelerator.no_sync(self.model)
        return without

    def backward(self, loss: Tensor) -> None:
        """Compute gradients of a loss, scaled where they pass through float16."""
        self.processes.accelerator.backward(self.scaler.scale(loss))

    def clip(self, max_grad_norm: float | None) -> Tensor | None:
        """Divide the gradient by the loss scale, and clip it."""
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        limit = math.inf if max_grad_norm is None else max_grad_norm
        norm: Tensor = self.processes.accelerator.clip_grad_norm_(trained, limit)
        return norm

    def step(self, grad_norm: float | None) -> StepOutcome:
        """Step; neither weights nor learning rate where a scaled gradient overflowed."""
        assert grad_norm is not None
        if not math.isfinite(grad_norm) and not self.scaler.is_enabled():
            raise NonFiniteGradientError(
                grad_norm,
                f"; the first parameter at fault is {self._first_nonfinite_gradient()}",
                "No weight was changed. Lower training.learning_rate, or use model.dtype=bfloat16 "
                "instead of float16.",
            )
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        was_skipped = self.scaler.get_scale() < scale
        if not was_skipped:
            self.scheduler.step()
        return StepOutcome(grad_norm, was_skipped)

    def _first_nonfinite_gradient(self) -> str:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return str(name)
        return "unknown"

    def unwrapped(self) -> Any:
        """Return the model without what accelerate wraps it in."""
        return self.processes.accelerator.unwrap_model(self.model)

    def collect(self, output: Path) -> Collected:
        """Return the optimizer's state; the model of rank 0 holds all tensors."""
        return Collected(None, self.optimizer.state_dict())

    def restore(self, checkpoint: Path) -> None:
        """Load the optimizer's state."""
        self._load_optimizer(read_saved(checkpoint / OPTIMIZER))

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def gather_trained(self) -> Mapping[str, Tensor] | None:
        """Return None: the model holds all tensors."""
        return None

    def release(self) -> nn.Module:
        """End the process group, and give the model.

        The wrapper is released first: freed after its process group, it waits for a thread that
        waits for it (torch 2.13, gloo).
        """
        self.model = self.unwrapped()
        self.processes.end()
        model: nn.Module = self.model
        return model
