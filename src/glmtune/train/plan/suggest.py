"""A recipe for those who bring a model and rows: our default, fitted to their number and length.

    chatglm3-lora     the recipe of the package
      + choices       from the rows (length, epochs, batch, held-out rows) and the model (layers)
      + overrides     of the user, which win

A choice is an override with its reason, so that the recipe is shown, saved and changed like any.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune import machine
from glmtune.errors import DataError
from glmtune.model.files import locate
from glmtune.model.load import load_config
from glmtune.model.stored import stored_tensors
from glmtune.recipe.methods import PeftSection
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.shipped import DEFAULT
from glmtune.train.plan.workload import encode_row_lengths
from glmtune.units import GIB, readable

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)  # of data.max_length, as far as the model goes
KEPT_SHARE = 0.99  # of the rows that should fit into data.max_length
FEWEST_HELD_OUT, MOST_HELD_OUT, HELD_OUT_SHARE = 8, 500, 0.05
WANTED_STEPS = 60  # optimizer steps of a run, before a step has the largest batch
SMALLEST_BATCH, LARGEST_BATCH = 4, 32  # rows of an optimizer step
EVALUATIONS = 10  # of a run
SMALL_MODEL = 10**9  # bytes of weights; no memory is saved below
WORKING_MEMORY = 1.25, 2 * GIB  # of a run: a factor of its weights, and what comes in addition
# Rows at least -> epochs: few rows are repeated more often.
EPOCHS = ((20_000, 1), (2_000, 2), (500, 3), (0, 5))


@dataclass(frozen=True, slots=True)
class Choice:
    """A value that was chosen for the user.

    Attributes:
        key: `section.key`.
        value: plain, as in YAML.
        reason: why, in a few words.
    """

    key: str
    value: Any
    reason: str

    @property
    def override(self) -> str:
        """The choice as `key=value`."""
        return f"{self.key}={json.dumps(self.value, ensure_ascii=False)}"


def suggest(given: Sequence[str]) -> list[Choice]:
    """Choose values of the default recipe for a model and its rows.

    Args:
        given: `key=value` of the user, among them model.name_or_path and data.train.

    Raises:
        CheckpointError: the configuration of the model cannot be read.
        DataError: the rows cannot be read.
        RecipeError: an override is invalid.
    """
    recipe = load_recipe(DEFAULT, given)
    config = load_config(recipe.model.name_or_path)
    longest = int(getattr(config, "seq_length", 0) or getattr(config, "max_position_embeddings", 0))
    lengths = _row_lengths(recipe, [*given, f"data.max_length={LENGTHS[-1]}"])
    chosen = [
        *_of_names(recipe, config.model_type),
        *of_weights(_num_weights(recipe), use_cpu=recipe.training.use_cpu),
        *of_rows(sorted(lengths), longest),
    ]
    named = {each.partition("=")[0] for each in given}
    return [
        choice
        for choice in chosen
        if choice.key not in named and choice.key.partition(".")[2] not in named
    ]


def _row_lengths(recipe: Recipe, overrides: Sequence[str]) -> Sequence[int]:
    rows, problem = encode_row_lengths(load_recipe(DEFAULT, overrides))
    if rows is None:
        raise DataError(problem)
    if not rows.lengths:
        raise DataError(f"{recipe.data.train[0]}: no row can be used.")
    return rows.lengths


def _of_names(recipe: Recipe, model_type: str) -> list[Choice]:
    folder = Path(str(recipe.data.train[0])).name.partition("#")[0]
    name = folder.partition(".")[0] or "run"
    choices = [Choice("output.dir", f"out/{name}", "named after the rows")]
    if model_type != "chatglm" and isinstance(recipe.adapter, PeftSection):
        choices.append(Choice("adapter.target_modules", "all-linear", f"layers of {model_type}"))
    return choices


def _num_weights(recipe: Recipe) -> int:
    """Count the numbers of a model in a folder; 0 for one that is not on this machine."""
    folder = Path(locate(recipe.model.name_or_path))
    if not folder.is_dir():
        return 0
    return sum(math.prod(tensor.shape) for tensor in stored_tensors(folder).values())


def of_weights(number: int, *, use_cpu: bool) -> list[Choice]:
    """Choose the dtype by the number of weights and the memory of the machine.

    The estimate is rough; `glmtune plan` simulates the run.
    """
    if not number:
        return []
    size = 2 * number  # in bfloat16
    if size < SMALL_MODEL:
        why = f"{readable(size)} of weights need no saving"
        return [
            Choice("model.dtype", "auto", why),
            Choice("training.gradient_checkpointing", False, why),
        ]
    factor, more = WORKING_MEMORY
    required = round(factor * size) + more
    gpus = () if use_cpu else machine.gpus()
    free = gpus[0].free_bytes if gpus else machine.host_memory().available_bytes
    if required <= free:
        return []
    why = f"about {readable(required)} would be needed, {readable(free)} are free"
    if gpus:
        return [Choice("adapter.method", "qlora", why)]
    return [Choice("model.compute", "int8", why)]


def of_rows(lengths: Sequence[int], longest: int) -> list[Choice]:
    """Choose by the lengths of the rows, in tokens, sorted."""
    number = len(lengths)
    held_out = min(max(round(number * HELD_OUT_SHARE), FEWEST_HELD_OUT), MOST_HELD_OUT)
    if number < 5 * FEWEST_HELD_OUT:
        held_out = 0
    epochs = next(epochs for fewest, epochs in EPOCHS if number >= fewest)
    learned = number - held_out
    batch = min(max(learned * epochs // WANTED_STEPS, SMALLEST_BATCH), LARGEST_BATCH)
    batch = 2 ** int(math.log2(batch))
    steps = math.ceil(learned / batch) * epochs
    interval = max(steps // EVALUATIONS, 1)
    kept = lengths[math.ceil(KEPT_SHARE * number) - 1]
    fitting = next((length for length in LENGTHS if length >= kept), LENGTHS[-1])
    evaluations = f"about {min(EVALUATIONS, steps)} times in {steps:,} steps"
    return [
        Choice(
            "data.max_length",
            min(fitting, longest or fitting),
            f"99 % of {number:,} rows have at most {kept:,} tokens",
        ),
        Choice(
            "data.eval_fraction",
            held_out,
            f"{held_out:,} rows are held out" if held_out else "too few rows to hold some out",
        ),
        Choice("training.num_train_epochs", epochs, f"for {number:,} rows"),
        Choice("training.per_device_train_batch_size", 2, "rows of a pack"),
        Choice("training.gradient_accumulation_steps", batch // 2, f"{batch} rows a step"),
        Choice("training.eval_steps", interval, evaluations),
        Choice("training.save_steps", interval, "as the evaluations"),
        Choice("training.logging_steps", min(interval, 10), "as often, or every 10 steps"),
    ]
