"""What updates in 16 bits cost in loss: the same run with LoRA by peft, in float32, and by ours.

    python -m benchmarks.lora_loss                       the demo's model and rows
    python -m benchmarks.lora_loss MODEL ROWS            any folder, LoRA on all linear layers

320 steps over a base in bfloat16, as `benchmarks.int8_loss`; prints the held-out loss every 80
steps. It needs a device that multiplies bfloat16: elsewhere activations are float32, in which both
are the same.
"""

from pathlib import Path

from benchmarks.int8_loss import SAME, compare, curve
from glmtune.methods import half_lora
from glmtune.recipe.recipe import Recipe

LEFT_TO_PEFT: dict[str, tuple[str, ...]] = {"float32": ("cpu", "cuda"), "bfloat16": ()}  # devices


def run(recipe: Recipe, output: Path, name: str) -> list[float]:
    half_lora.LEFT_TO_PEFT = LEFT_TO_PEFT[name]  # in this process alone
    return curve(recipe, output, [each for each in SAME if not each.startswith("use_cpu")])


if __name__ == "__main__":
    compare(__doc__, ("float32", "bfloat16"), run)
