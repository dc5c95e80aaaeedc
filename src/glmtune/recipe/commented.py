"""A recipe as YAML with comments: what `glmtune init` writes, and what a run without one prints."""

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

from glmtune.messages import padded, translate
from glmtune.recipe.recipe import Recipe

# The keys that people change, in the order in which they meet them; others keep their default.
SHOWN: Mapping[str, str] = {
    "model.name_or_path": "folder of the model, a hub id, or nano",
    "model.dtype": "of the frozen weights in memory",
    "data.train": "files, folders or hub ids: JSON, JSONL, CSV, Parquet, ...",
    "data.eval_fraction": "held out: a share below 1, or a number of rows",
    "data.layout": "of messages as token ids; official is that of the original",
    "data.max_length": "tokens of a row",
    "data.overlong": "what happens to longer rows",
    "adapter.method": "lora, qlora (weights in 4 bits), ...: see docs/methods.md",
    "adapter.r": "rank of the update",
    "adapter.lora_alpha": "the update is scaled by lora_alpha / r",
    "adapter.lora_dropout": "of the input of the adapter, in training",
    "adapter.target_modules": "layers that get an adapter",
    "training.per_device_train_batch_size": "rows of a pack",
    "training.gradient_accumulation_steps": "packs of a step",
    "training.num_train_epochs": "how often each row is learned",
    "training.learning_rate": "at its highest",
    "training.lr_scheduler_type": "how it falls",
    "training.warmup_steps": "below 1: a share of all steps",
    "training.gradient_checkpointing": "less memory, and a third more time",
    "training.eval_strategy": "when held-out rows are evaluated: steps, epoch, no",
    "training.eval_steps": "steps between evaluations",
    "training.save_strategy": "when a checkpoint is written: steps, epoch, no",
    "training.save_steps": "steps between checkpoints",
    "training.logging_steps": "steps between lines of the log",
    "output.dir": "folder of the result; it must not hold another run",
}
COMMENT_COLUMN = 48


def commented(recipe: Recipe, reasons: Mapping[str, str] | None = None) -> str:
    """Write the keys that people change as YAML, each with a comment.

    Args:
        recipe: whose values are written; a value that differs from its default is never left out.
        reasons: comments in place of the general ones, by `section.key`.

    Returns:
        YAML that reads as the same recipe.
    """
    comments = {**SHOWN, **(reasons or {})}
    lines: list[str] = []
    for section, values in recipe.model_dump(mode="json").items():
        keys = _keys(recipe, section, values)
        if not keys:
            continue
        lines.append(f"{section}:")
        for key in keys:
            shown = f"  {_line(key, values[key])}"
            comment = comments.get(f"{section}.{key}")
            lines.append(
                f"{padded(shown, COMMENT_COLUMN)}  # {translate(comment)}" if comment else shown
            )
    return "\n".join(lines)


def _keys(recipe: Recipe, section: str, values: Mapping[str, Any]) -> list[str]:
    """List the keys of a section to write: those that are shown, then those that were changed."""
    shown = [key.partition(".")[2] for key in SHOWN if key.startswith(f"{section}.")]
    kept = [key for key in shown if key in values]
    content = getattr(recipe, section)
    defaults = {
        key: field.get_default(call_default_factory=True)
        for key, field in type(content).model_fields.items()
    }
    changed = [key for key in values if key not in kept and getattr(content, key) != defaults[key]]
    return [*kept, *changed]


def _line(key: str, value: Any) -> str:
    """Write a key on one line; JSON is YAML."""
    if isinstance(value, list | dict):
        return f"{key}: {json.dumps(value, ensure_ascii=False)}"
    text: str = yaml.safe_dump({key: value}, allow_unicode=True, width=math.inf)
    return text.rstrip("\n")
