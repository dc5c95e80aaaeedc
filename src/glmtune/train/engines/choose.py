"""Which engine a recipe asks for."""

from typing import Any

from glmtune.recipe.recipe import RunRecipe
from glmtune.train.engines.deepspeed import DeepSpeedEngine
from glmtune.train.engines.engine import Engine
from glmtune.train.engines.fsdp import FsdpEngine
from glmtune.train.engines.plain import PlainEngine
from glmtune.train.processes import Processes


def make_engine(recipe: RunRecipe, model: Any, processes: Processes, num_steps: int) -> Engine:
    """Make the engine of a run, with its optimizer and learning-rate schedule.

    Args:
        recipe: names it.
        model: with what is trained, the same on every process.
        processes: that train.
        num_steps: optimizer steps of the whole run.
    """
    kind = PlainEngine
    if recipe.training.sharding:
        kind = FsdpEngine
    elif recipe.training.deepspeed:
        kind = DeepSpeedEngine
    ratio = getattr(recipe.adapter, "loraplus_lr_ratio", None)
    return kind(model, recipe.training, processes, num_steps, ratio)
