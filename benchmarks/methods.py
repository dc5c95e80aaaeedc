"""Every way of tuning on the demo's model and rows, as one table: what each costs and gives.

    python -m benchmarks.methods                 all of them
    python -m benchmarks.methods lora full       some

Each is a run of `glmtune train` in a process of its own. The base is nano, a thousandth of
ChatGLM3-6B: the order is that of this task and this base, not of every one.
"""

import json
import re
import subprocess
import sys
import tempfile

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
from glmtune.chat import open_session
from glmtune.demo.folder import prepare
from glmtune.demo.score import answer, count_right, read_questions
from glmtune.metrics import read_metrics
from glmtune.train.run import fine_tune

section, rate, folder = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
demo = prepare(folder)
from glmtune.recipe import build_recipe
tree = demo.recipe.model_dump(mode="json") | {"adapter": section}
recipe = build_recipe(tree, [
    f"learning_rate={rate}", "num_train_epochs=8", "eval_strategy=epoch", "logging_steps=1",
    "checks.stop_prompts=0", "checks.max_new_tokens=1", "lint.before_training=false",
])
try:
    fine_tune(recipe)
    failed = ""
except Exception as error:
    failed = str(error)
lines = read_metrics(demo.adapter / "metrics.jsonl")
report = json.loads((demo.adapter / "report.json").read_text())["facts"]
is_whole = (demo.adapter / "config.json").exists()
session = open_session(*((str(demo.adapter),) if is_whole else ("nano", demo.adapter)))
questions = read_questions(demo.held_out)
answers = answer(session.model, session.template, questions)
speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
print("RESULT" + json.dumps({
    "failed": failed,
    "trainable": report["num_trainable"],
    "bytes": sum(f.stat().st_size for f in demo.adapter.glob("*model*.*")),
    "peak": max(line.get("peak_memory_bytes", 0) for line in lines),
    "speed": statistics.median(speeds),
    "eval_loss": [line["eval_loss"] for line in lines if "eval_loss" in line][-1],
    "right": count_right(questions, answers) / len(questions),
}))
"""


def run(name: str) -> dict[str, object]:
    """Train by one method in a process of its own, and give what came of it."""
    section, rate = METHODS[name]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(section), str(rate), f"{folder}/demo"],
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"^RESULT(.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    result: dict[str, object] = json.loads(found[1])
    if result["failed"]:
        raise RuntimeError(f"{name}: {result['failed']}")
    return result


def row(name: str, r: dict[str, object]) -> str:
    """Write one line of the table."""
    numbers = {key: float(str(value)) for key, value in r.items() if key != "failed"}
    return (
        f"| {name} | {METHODS[name][1]:g} | {numbers['trainable']:,.0f} "
        f"| {numbers['bytes'] / 2**20:.2f} MiB | {numbers['peak'] / 2**20:,.0f} MiB "
        f"| {numbers['speed']:,.0f} | {numbers['eval_loss']:.3f} | {numbers['right']:.0%} |"
    )


HEADER = (
    "| method | learning rate | trained numbers | file | peak memory | tokens/s | held-out loss "
    "| right answers |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    """Run all methods, or those named, and print the table."""
    chosen = sys.argv[1:] or list(METHODS)
    print(HEADER)
    for name in chosen:
        print(row(name, run(name)), flush=True)


if __name__ == "__main__":
    main()
