"""Every method of tuning on the demo's model and rows, as one table of cost and result.

    python -m benchmarks.methods                     the result of an epoch of each
    python -m benchmarks.methods --speed             the time and memory of each, over 12 steps
    python -m benchmarks.methods [--speed] lora full     only these

Each is a run of `glmtune train` in a process of its own. Only --speed needs an idle machine. The
base is nano, a thousandth of ChatGLM3-6B: the ranking holds for this task, this base and one epoch.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from typing import Any

ALL = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
LORA = {"r": 64, "lora_alpha": 64, "use_rslora": True, "target_modules": ALL}
METHODS: dict[str, tuple[dict[str, object], float]] = {  # section, learning rate
    "lora": (LORA, 1e-3),
    "lora, use_dora": (LORA | {"use_dora": True}, 1e-3),
    "lora, pissa": (LORA | {"init_lora_weights": "pissa"}, 5e-4),
    "lora, olora": (LORA | {"init_lora_weights": "olora"}, 5e-4),
    "lora, LoRA+": (LORA | {"loraplus_lr_ratio": 4}, 5e-4),
    "qlora, NF4": (LORA | {"method": "qlora"}, 1e-3),
    "qlora, 8 bits": (LORA | {"method": "qlora", "quantization_bit": 8}, 1e-3),
    "vera": ({"method": "vera", "r": 256, "target_modules": ALL}, 2e-2),
    "oft": ({"method": "oft", "oft_block_size": 64, "target_modules": ALL}, 3e-3),
    "ia3": ({"method": "ia3"}, 2e-2),
    "prompt_tuning": ({"method": "prompt_tuning", "num_virtual_tokens": 32}, 3e-2),
    "p_tuning": ({"method": "p_tuning", "num_virtual_tokens": 32}, 1e-2),
    "prefix_tuning": ({"method": "prefix_tuning", "num_virtual_tokens": 32}, 1e-1),
    "ptuning_v2": ({"method": "ptuning_v2", "pre_seq_len": 32}, 1e-1),
    "ptuning_v2, projection": (
        {"method": "ptuning_v2", "pre_seq_len": 32, "prefix_projection": True},
        1e-2,
    ),
    "freeze, 1 layer": ({"method": "freeze", "trainable_layers": 1}, 1e-3),
    "full": ({"method": "full"}, 5e-4),
}
RUN = """
import json, statistics, sys
from pathlib import Path
from glmtune.use.open import open_session
from glmtune.cli.demo.folder import prepare
from glmtune.cli.demo.score import answer, count_right, read_questions
from glmtune.prove.metrics import read_metrics
from glmtune.train.run import fine_tune

section, folder, changes = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
demo = prepare(folder)
from glmtune.recipe.reading import build_recipe
tree = demo.recipe.model_dump(mode="json") | {"adapter": section}
recipe = build_recipe(tree, [
    "logging_steps=1", "checks.stop_prompts=0", "checks.max_new_tokens=1",
    "checks.forgetting=null", "lint.before_training=false", *changes,
])
try:
    fine_tune(recipe)
    failed = ""
except Exception as error:
    failed = str(error)
lines = read_metrics(demo.adapter / "metrics.jsonl")
evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
right = None
if evaluated:
    is_whole = (demo.adapter / "config.json").exists()
    session = open_session(*((str(demo.adapter),) if is_whole else ("nano", demo.adapter)))
    questions = read_questions(demo.held_out)
    answers = answer(session.model, session.template, questions)
    right = count_right(questions, answers) / len(questions)
report = json.loads((demo.adapter / "report.json").read_text())["facts"]
speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
print("RESULT" + json.dumps({
    "failed": failed,
    "trainable": report["num_trainable"],
    "bytes": sum(f.stat().st_size for f in demo.adapter.glob("*model*.*")),
    "peak": max(line.get("peak_memory_bytes", 0) for line in lines),
    "speed": statistics.median(speeds),
    "eval_loss": evaluated[-1] if evaluated else None,
    "right": right,
}))
"""


WHAT = {  # what is to be seen -> changes of the recipe
    "speed": ["max_steps=12", "eval_strategy=no"],
    "result": ["num_train_epochs=1", "eval_strategy=epoch"],
}


def run(name: str, what: str) -> dict[str, float]:
    """Train by one method in a process of its own, and give what came of it."""
    section, rate = METHODS[name]
    changes = [f"learning_rate={rate}", *WHAT[what]]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(section), f"{folder}/demo", *changes],
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"^RESULT(.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(found[1])
    if failed := result.pop("failed"):
        raise RuntimeError(f"{name}: {failed}")
    return result


def main() -> None:
    """Run all methods, or those named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", action="store_true", help="tokens/s and memory, by 12 steps")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    arguments = parser.parse_args()
    for name in arguments.methods:
        if name not in METHODS:
            parser.error(f"{name!r} is none of {', '.join(METHODS)}")
    chosen = arguments.methods or list(METHODS)
    if arguments.speed:
        print("| method | tokens/s | peak memory |\n| --- | --- | --- |")
    else:
        print(
            "| method | learning rate | trained numbers | file | held-out loss | right answers |\n"
            "| --- | --- | --- | --- | --- | --- |"
        )
    for name in chosen:
        r = run(name, "speed" if arguments.speed else "result")
        if arguments.speed:
            cells = [f"{r['speed']:,.0f}", f"{r['peak'] / 2**20:,.0f} MiB"]
        else:
            cells = [
                f"{METHODS[name][1]:g}",
                f"{r['trainable']:,}",
                f"{r['bytes'] / 2**20:.2f} MiB",
            ]
            cells += [f"{r['eval_loss']:.3f}", f"{r['right']:.0%}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
