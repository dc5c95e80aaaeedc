"""Shard gradients and optimizer state with DeepSpeed ZeRO, configured by DeepSpeed's own JSON.

    stage 1    optimizer state    each process keeps and steps its shard, and gets the other
    stage 2    and gradients      updated weights from the others
    stage 3    and weights        refused, see `read_file`

The file says how ZeRO works. What the recipe already says (batch, clipping, precision, optimizer
and learning rate) must be missing from the file or "auto" there, as in the files of LLaMA-Factory
and of the official ChatGLM3 demo.

DeepSpeed clips and steps in one call, so a gradient that is not finite is seen after the step that
it spoiled. Every process writes its shard of a checkpoint, and rank 0 the rest.

Source: https://arxiv.org/abs/1910.02054; deepspeed.initialize.
"""

import json
import math
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError, RecipeError
from glmtune.recipe.sections import TrainingSection
from glmtune.train.engines.engine import Collected, NonFiniteGradientError, StepOutcome
from glmtune.train.engines.plain import PlainEngine

TAG = "zero"  # the folder within a checkpoint
AUTO = "auto"
SET_BY_RECIPE = {  # key of the file: the key of the recipe that sets it
    "train_batch_size": "training.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer": "training.optim and learning_rate",
    "scheduler": "training.lr_scheduler_type",
    "bf16": "training.bf16",
    "fp16": "training.fp16",
}


def read_file(path: Path) -> dict[str, Any]:
    """Read a configuration of DeepSpeed, and refuse what contradicts the recipe.

    Stage 3 gathers weights module by module, so all processes must call each module equally often.
    Here an answer is scored in as many chunks as it needs and packs differ among processes, so
    they would wait for each other forever.

    Raises:
        RecipeError: the file cannot be read, asks for no ZeRO or stage 3, or sets what the recipe
            sets.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"training.deepspeed: {path} cannot be read as JSON ({error}). Give a configuration "
            'of DeepSpeed, such as {"zero_optimization": {"stage": 2}}.'
        ) from error
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage == 3:
        raise RecipeError(
            f"training.deepspeed: {path} has zero_optimization.stage 3, which shards weights "
            "and deadlocks where processes score answers of different length. Use "
            "training.sharding=fsdp2, which shards them too, or stage 2."
        )
    if stage not in (1, 2):
        raise RecipeError(
            f"training.deepspeed: {path} has zero_optimization.stage {stage!r}, expected 1 or 2. "
            "Without ZeRO leave training.deepspeed out; `--nproc` alone does the same."
        )
    for key, recipe_key in SET_BY_RECIPE.items():
        value = config.get(key, AUTO)
        if isinstance(value, dict) and "enabled" in value:
            value = value["enabled"] or AUTO
        if value != AUTO:
            raise RecipeError(
                f"training.deepspeed: {path} sets {key}, which the recipe sets by {recipe_key}. "
                'Leave it out of the file, or make it "auto".'
            )
    return _without_auto({key: value for key, value in config.items() if key not in SET_BY_RECIPE})


def _without_auto(config: dict[str, Any]) -> dict[str, Any]:
    """Drop what is "auto", so that DeepSpeed's default holds."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if value != AUTO
    }


def check_deepspeed(section: TrainingSection, num_processes: int) -> None:
    """Check whether DeepSpeed can be used here, before anything is loaded.

    Raises:
        RecipeError: DeepSpeed is not installed, this is one process, or the file is refused.
    """
    from importlib.util import find_spec

    if section.deepspeed is None:
        return
    if find_spec("deepspeed") is None:
        raise RecipeError(
            "training.deepspeed asks for DeepSpeed, which is not installed. `pip install "
            "'glmtune[deepspeed]'`, or use training.sharding=fsdp2, which needs nothing more."
        )
    read_file(Path(section.deepspeed))
    if num_processes < 2:
        raise RecipeError(
            "training.deepspeed shards among processes, and there is only one. Start more with "
            "`glmtune train --nproc 2` or torchrun, or leave it out."
        )


class DeepSpeedEngine(PlainEngine):
    """Implements `Engine` for ZeRO stages 1 and 2; the arguments are those of `PlainEngine`.

    What is trained is float32 and the same on every process.
    """

    has_plain_gradients = False  # DeepSpeed moves them into its own buffers, and keeps them

    def _wrap(self, model: Any) -> Any:
        import deepspeed

        assert self._section.deepspeed is not None
        config = read_file(Path(self._section.deepspeed)) | {
            "train_micro_batch_size_per_gpu": 1,  # the loop marks where a step ends
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._section.max_grad_norm or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # which has to be compiled
        }
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        self.optimizer = engine.optimizer
        return engine

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Mark whether a step ends after this micro-batch."""
        self.model.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute gradients; the loss is divided by the loop already."""
        self.model.backward(loss, scale_wrt_gas=False)

    def clip(self, max_grad_norm: float | None) -> Tensor | None:
        """Return None, since DeepSpeed clips when it steps."""
        return None

    def step(self, grad_norm: float | None) -> StepOutcome:
        """Let DeepSpeed clip and step, by the norm that its configuration was made with."""
        self.model.step()
        norm = float(self.model.get_global_grad_norm())
        if not math.isfinite(norm):
            raise NonFiniteGradientError(
                norm,
                "",
                "DeepSpeed has taken the step, so go back to the last checkpoint, and lower "
                "training.learning_rate.",
            )
        self.scheduler.step()
        return StepOutcome(norm)

    def collect(self, output: Path) -> Collected:
        """Let every process write its shard of the training state into a folder."""
        folder = output / f".{TAG}.partial"
        if self.processes.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        torch.distributed.barrier()
        self.model.save_checkpoint(
            str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True
        )
        torch.distributed.barrier()
        return Collected(None, folder / TAG)

    def restore(self, checkpoint: Path) -> None:
        """Restore what `collect` wrote; learning rate and frozen weights are not in it.

        Raises:
            CheckpointError: DeepSpeed does not find its shard.
        """
        found, _ = self.model.load_checkpoint(
            str(checkpoint), tag=TAG, load_module_strict=False, load_lr_scheduler_states=False
        )
        if found is None:
            raise CheckpointError(
                f"{checkpoint}: DeepSpeed does not find its shard of it in {TAG}/. Delete this "
                "checkpoint to resume from the one before it."
            )
