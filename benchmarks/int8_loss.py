"""What int8 costs in loss: the same run on a base in bfloat16 and in int8, curves side by side.

    python -m benchmarks.int8_loss                       the demo's model and rows
    python -m benchmarks.int8_loss MODEL ROWS            any folder, LoRA on all linear layers

320 steps; prints the held-out loss every 80 steps, and how far int8 is from bfloat16. Only
`model.compute` differs between the two: rows, their order, seeds and recipe are the same.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from glmtune.cli.demo.folder import prepare
from glmtune.errors import TrainingError
from glmtune.prove.metrics import read_metrics
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune

STEPS, EVERY = 320, 80
SAME = [
    "model.dtype=bfloat16", f"max_steps={STEPS}", "eval_strategy=steps", f"eval_steps={EVERY}",
    "save_strategy=no", "load_best_model_at_end=false", "report_to=none", "use_cpu=true",
    "checks.stop_prompts=0", "checks.max_new_tokens=1", "lint.before_training=false",
]  # fmt: skip


def recipe_for(model: str, rows: str) -> Recipe:
    return build_recipe(
        {
            "model": {"name_or_path": model},
            "data": {"train": rows, "max_length": 128, "overlong": "truncate_prompt",
                     "eval_fraction": 0.08},
            "adapter": {"r": 8, "target_modules": "all-linear"},
            "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
                         "learning_rate": 5e-4},
            "output": {"dir": "unused"},
        }
    )  # fmt: skip


def curve(recipe: Recipe, output: Path, changes: Sequence[str]) -> list[float]:
    """Run once, with changes of the recipe, and give the held-out losses."""
    tree = recipe.model_dump(mode="json")
    try:
        fine_tune(build_recipe(tree, [*changes, f"output.dir={output}"]))
    except TrainingError as error:  # a proof that failed leaves the curve as it is
        print(f"{output.name}: {error}", file=sys.stderr)
    lines = read_metrics(output / "metrics.jsonl")
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def compare(
    doc: str | None, names: tuple[str, str], run: Callable[[Recipe, Path, str], list[float]]
) -> None:
    """Read the command line, run once by each name, and print the losses side by side."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("rows", nargs="?")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model:
            recipe = recipe_for(arguments.model, arguments.rows)
        else:
            recipe = prepare(Path(scratch) / "demo").recipe
        wide, narrow = (run(recipe, Path(scratch) / name, name) for name in names)
    if len(wide) != len(narrow):
        sys.exit(f"got {len(wide)} and {len(narrow)} evaluations: a run was stopped. Run it again.")
    print(f"| step | {names[0]} | {names[1]} | |\n| --- | --- | --- | --- |")
    for index, (one, other) in enumerate(zip(wide, narrow, strict=True), start=1):
        step = min(index * EVERY, STEPS)
        print(f"| {step} | {one:.4f} | {other:.4f} | {100 * (other / one - 1):+.2f} % |")


def run(recipe: Recipe, output: Path, name: str) -> list[float]:
    compute = {"bfloat16": "null", "int8": "int8"}[name]
    return curve(recipe, output, [*SAME, f"model.compute={compute}"])


if __name__ == "__main__":
    compare(__doc__, ("bfloat16", "int8"), run)
