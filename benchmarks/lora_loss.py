"""What updates in 16 bits cost in loss: the same run with LoRA by peft, in float32, and by ours.

    python -m benchmarks.lora_loss                       the demo's model and rows
    python -m benchmarks.lora_loss MODEL ROWS            any folder, LoRA on all linear layers

320 steps over a base in bfloat16, as `benchmarks.int8_loss`; prints the held-out loss every 80
steps. It needs a device that multiplies bfloat16: elsewhere activations are float32, in which both
are the same.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.int8_loss import EVERY, SAME, STEPS, recipe_for
from glmtune.cli.demo.folder import prepare
from glmtune.errors import TrainingError
from glmtune.methods import half_lora
from glmtune.prove.metrics import read_metrics
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune

DEVICES = ("cpu", "cuda")


def curve(recipe: Recipe, output: Path, left_to_peft: tuple[str, ...]) -> list[float]:
    """Run once, and give the held-out losses."""
    own = [each for each in SAME if not each.startswith("use_cpu")]
    half_lora.LEFT_TO_PEFT = left_to_peft  # in this process alone
    try:
        fine_tune(build_recipe(recipe.model_dump(mode="json"), [*own, f"output.dir={output}"]))
    except TrainingError as error:  # a proof that failed leaves the curve as it is
        print(f"{output.name}: {error}", file=sys.stderr)
    lines = read_metrics(output / "metrics.jsonl")
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("rows", nargs="?")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model:
            recipe = recipe_for(arguments.model, arguments.rows)
        else:
            recipe = prepare(Path(scratch) / "demo").recipe
        wide = curve(recipe, Path(scratch) / "float32", DEVICES)
        half = curve(recipe, Path(scratch) / "bfloat16", ())
    print("| step | float32 | bfloat16 | |\n| --- | --- | --- | --- |")
    for index, (one, other) in enumerate(zip(wide, half, strict=True)):
        step = min((index + 1) * EVERY, STEPS)
        print(f"| {step} | {one:.4f} | {other:.4f} | {100 * (other / one - 1):+.2f} % |")


if __name__ == "__main__":
    main()
