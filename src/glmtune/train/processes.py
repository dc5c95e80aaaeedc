"""The processes of a run: ranks, devices, and the few collectives that a run needs.

accelerate finds out how the command was started (alone, by `--nproc`, torchrun or `accelerate
launch`) and which device each process has.
"""

import random
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import RecipeError
from glmtune.recipe.recipe import RunRecipe


class Processes:
    """This process among those of a run.

    Attributes:
        accelerator: accelerate's view of the same.
        device: of this process.
        process_index, num_processes: the global rank and the world size.
        is_main: whether this is rank 0, which writes the output folder.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.process_index: int = accelerator.process_index
        self.num_processes: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process

    def sum(self, value: float) -> float:
        """Sum a number over all processes."""
        if self.num_processes == 1:
            return value
        total = torch.tensor(value, device=self.device, dtype=torch.float64)
        return float(self.accelerator.reduce(total, "sum").item())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: a signal may reach only one of them."""
        return flag if self.num_processes == 1 else self.sum(flag) > 0

    def gather(self, value: Any) -> list[Any]:
        """Collect an object from every process, in the order of ranks."""
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object([value])
        return gathered

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.accelerator.wait_for_everyone()

    def main_first(self) -> AbstractContextManager[None]:
        """Let one process of each machine run a block before the others, which find its files."""
        first: AbstractContextManager[None] = self.accelerator.local_main_process_first()
        return first

    def start_trackers(self, recipe: RunRecipe) -> None:
        """Start the trackers of `output.report_to`, with the recipe as their configuration."""
        flat = {
            f"{section}.{key}": value if isinstance(value, int | float | str | bool) else str(value)
            for section, values in recipe.model_dump(mode="json").items()
            for key, value in values.items()
        }
        self.accelerator.init_trackers(recipe.output.run_name or "glmtune", config=flat)

    def log(self, values: dict[str, Any]) -> None:
        """Send values to the trackers; `step` is one of them."""
        others = {name: value for name, value in values.items() if name != "step"}
        self.accelerator.log(others, step=values["step"])

    def end(self) -> None:
        """Finish the trackers and destroy the process group; rank 0 continues alone."""
        self.accelerator.free_memory()
        self.accelerator.end_training()


def start_processes(recipe: RunRecipe) -> Processes:
    """Initialize accelerate for a run.

    Raises:
        RecipeError: a tracker is unknown or not installed.
    """
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    trackers = recipe.output.trackers(installed)
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise RecipeError(f"output.report_to names {name!r}; accelerate knows {known}.")
        if name not in installed:
            package = "'glmtune[tensorboard]'" if name == "tensorboard" else name
            raise RecipeError(
                f"output.report_to names {name!r}, which is not installed. "
                f"`pip install {package}`, or leave it out."
            )
    accelerator = Accelerator(
        # Without a GPU accelerate detects several processes only with cpu=True.
        cpu=recipe.training.use_cpu or not torch.accelerator.is_available(),
        mixed_precision="no",  # train/precision.py does it, on a CPU too
        log_with=list(trackers) or None,
        project_dir=str(Path(recipe.output.dir) / "runs"),
    )
    return Processes(accelerator)


def seed_everything(seed: int) -> None:
    """Seed what initializes the adapter and draws dropout; the order of rows has its own seed."""
    random.seed(seed)
    torch.manual_seed(seed)
