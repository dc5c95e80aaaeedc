"""Gradients and AdamW's means dealt out by DeepSpeed (ZeRO), as its own configuration file says.

    stage 1    AdamW's means      each process keeps and steps its part of them, and gets the rest
    stage 2    and the gradients  of the weights from the others
    stage 3    and the weights    refused, see `read_file`

The file says how ZeRO is done. What the recipe says, batch, clipping, precision, optimizer and
learning rate, the file must leave out or call "auto", as those of LLaMA-Factory and the official
ChatGLM3 demo do.

DeepSpeed clips and steps in one, so a gradient that is not finite is seen after the step that it
spoiled. Every process writes its part of a checkpoint, and rank 0 the rest.

Source: https://arxiv.org/abs/1910.02054; deepspeed.initialize.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glmtune.errors import CheckpointError, RecipeError
from glmtune.recipe.sections import TrainingSection

TAG = "zero"  # the folder within a checkpoint
AUTO = "auto"
OURS = {  # key of the file: where the recipe says it
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

    Stage 3 gathers weights module by module, and all processes must call each as often. Ours score
    an answer in as many chunks as it needs, and their packs differ, so they would wait for ever.

    Raises:
        RecipeError: the file cannot be read, asks for no ZeRO or stage 3, or says what the recipe
            says.
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
            f"training.deepspeed: {path} has zero_optimization.stage 3, which deals out weights "
            "and waits for ever where processes score answers of different length. Use "
            "training.sharding=fsdp2, which deals them out too, or stage 2."
        )
    if stage not in (1, 2):
        raise RecipeError(
            f"training.deepspeed: {path} has zero_optimization.stage {stage!r}, expected 1 or 2. "
            "Without ZeRO leave training.deepspeed out; `--nproc` alone does the same."
        )
    for key, ours in OURS.items():
        said = config.get(key, AUTO)
        if isinstance(said, dict) and "enabled" in said:
            said = said["enabled"] or AUTO
        if said != AUTO:
            raise RecipeError(
                f"training.deepspeed: {path} sets {key}, and the recipe says that by {ours}. "
                'Leave it out of the file, or make it "auto".'
            )
    return _without_auto({key: value for key, value in config.items() if key not in OURS})


def _without_auto(config: dict[str, Any]) -> dict[str, Any]:
    """Leave to DeepSpeed whatever is called "auto"."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if value != AUTO
    }


def check_zero(section: TrainingSection, num_processes: int) -> None:
    """Refuse what cannot be done here, before anything is loaded.

    Raises:
        RecipeError: DeepSpeed is not installed, this is one process, or the file is refused.
    """
    from importlib.util import find_spec

    if section.deepspeed is None:
        return
    if find_spec("deepspeed") is None:
        raise RecipeError(
            "training.deepspeed asks for DeepSpeed, which is not installed. `pip install "
            "deepspeed`, or use training.sharding=fsdp2, which needs nothing more."
        )
    read_file(Path(section.deepspeed))
    if num_processes < 2:
        raise RecipeError(
            "training.deepspeed deals out among processes, and this is one. Start more, by "
            "`glmtune train --nproc 2` or torchrun, or leave it out."
        )


def deal_out(model: nn.Module, optimizer: torch.optim.Optimizer, section: TrainingSection) -> Any:
    """Give DeepSpeed's engine around a model, which is the same on every process.

    Args:
        model: what is trained is float32; it is moved to this process's device.
        optimizer: over what is trained; the engine steps it from now on.
        section: names the file, and says how far gradients are clipped.
    """
    import deepspeed

    assert section.deepspeed is not None
    config = read_file(Path(section.deepspeed)) | {
        "train_micro_batch_size_per_gpu": 1,  # the loop says where a step ends
        "gradient_accumulation_steps": 1,
        "gradient_clipping": section.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # which has to be compiled
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine


def is_engine(model: nn.Module) -> bool:
    """Whether DeepSpeed holds a model."""
    return hasattr(model, "zero_optimization_stage")


def save(engine: Any, output: Path) -> Path:
    """Write every process's part of the training state, and give the folder."""
    folder = output / f".{TAG}.partial"
    if engine.global_rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    torch.distributed.barrier()
    return folder / TAG


def restore(engine: Any, folder: Path) -> None:
    """Put back what `save` wrote; the learning rate and the weights of a frozen base are not in it.

    Raises:
        CheckpointError: DeepSpeed does not find its part.
    """
    found, _ = engine.load_checkpoint(
        str(folder), tag=TAG, load_module_strict=False, load_lr_scheduler_states=False
    )
    if found is None:
        raise CheckpointError(f"{folder}: DeepSpeed does not find its part of it in {TAG}/.")
