"""What span shuffling and two-dimensional positions are worth, and each task family by itself.

    python -m benchmarks.objective_ablation RECIPE.yaml --output FOLDER [--seeds 1 2]

RECIPE is that of the nano model. Every run has the same texts, windows, steps and, for one seed,
the same spans; only the settings named in the table differ. A model is judged by the held-out
windows as it was trained: with its order of spans and its positions. Runs that the folder holds are
not repeated, so the table can be printed again.
"""

import argparse
from pathlib import Path
from statistics import mean

from glmtune.prove.metrics import read_metrics
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import PretrainRecipe
from glmtune.train.pretrain import pretrain

# A model and a budget for minutes: 1.1 million parameters, about 1,900 tokens a step.
SMALLER = [
    "model.config.num_layers=2", "model.config.hidden_size=128", "model.config.ffn_hidden_size=352",
    "model.config.num_attention_heads=2", "model.config.multi_query_group_num=1",
    "data.max_length=130", "data.eval_fraction=0.01", "training.per_device_train_batch_size=16",
    "training.learning_rate=2e-3", "training.lr_scheduler_type=linear",
    "training.save_strategy='no'", "training.eval_strategy=steps", "training.logging_steps=50",
    "checks.stop_prompts=0", "output.report_to=none",
]  # fmt: skip
MIXTURE = ["token=0.5", "sentence=0.25", "document=0.25", "causal=0"]
ABLATION = {
    "as published": MIXTURE,
    "spans in text order": [*MIXTURE, "shuffle_spans=false"],
    "positions 0, 1, 2, ...": [*MIXTURE, "two_dimensional=false"],
}
FAMILIES = {
    "masked LM": ["token=1", "sentence=0", "document=0", "causal=0"],
    "causal LM": ["token=0", "sentence=0", "document=0", "causal=1"],
    "prefix LM": ["token=0", "sentence=0", "document=1", "causal=0", "prefix_share=1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further values")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--family-steps", type=int, default=400, help="0: no families")
    arguments = parser.parse_args()

    def run(settings: list[str], seed: int, steps: int, evaluations: int) -> list[dict[str, float]]:
        chosen = [f"objective.{setting}" for setting in settings]
        name = "-".join([*settings, f"seed={seed}", f"steps={steps}"])
        budget = [f"training.max_steps={steps}", f"training.eval_steps={steps // evaluations}"]
        place = [f"training.seed={seed}", f"output.dir={arguments.output / name}"]
        values = [*SMALLER, *chosen, *budget, *place, *arguments.overrides]
        metrics = arguments.output / name / "metrics.jsonl"
        if not any(line["step"] == steps for line in read_metrics(metrics)):
            result = pretrain(load_recipe(arguments.recipe, values, kind=PretrainRecipe))
            if not result.is_finished:
                raise SystemExit(f"stopped in {name}; the runs before it are kept")
        return [line for line in read_metrics(metrics) if "eval_loss" in line]

    if arguments.family_steps:
        print("| family | held-out loss, from the first quarter to the end |\n| --- | --- |")
        for family, settings in FAMILIES.items():
            lines = run(settings, arguments.seeds[0], arguments.family_steps, 4)
            losses = ", ".join(f"{line['eval_loss']:.3f}" for line in lines)
            print(f"| {family} | {losses} |", flush=True)
    parts = ["eval_loss_token", "eval_loss_sentence", "eval_loss_document", "eval_loss"]
    print("\n| | token | sentence | document | mixture |\n| --- | --- | --- | --- | --- |")
    # A seed at a time, so that an interrupted evening still compares like with like.
    last = {
        (variant, seed): run(settings, seed, arguments.steps, 1)[-1]
        for seed in arguments.seeds
        for variant, settings in ABLATION.items()
    }
    for variant in ABLATION:
        cells = []
        for part in parts:
            values = [last[variant, seed][part] for seed in arguments.seeds]
            cells.append(f"{mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
