"""Start times: `--help`, and the first step of a run.

    python -m benchmarks.start [--quick]

The first step is that of fresh processes which load nano, read the demo's rows and learn 16 of
them through LoRA; the clock runs from the start of the process to the end of the step. The peer is
transformers' Trainer with peft, on the same model class and rows; it checks nothing beforehand.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, run
from glmtune.cli.demo.fractions import TRAIN

ROWS = 16
RECIPE = {
    "model": {"name_or_path": "nano"},
    "data": {"train": str(TRAIN), "format": "alpaca"},
    "adapter": {"r": 8, "target_modules": "query_key_value"},
    "training": {
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
    },
    "checks": {"stop_prompts": 0},
    "output": {"dir": "run", "report_to": "none"},
}


def until_help() -> float:
    """Seconds of `glmtune --help`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "glmtune", "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def until_our_step(folder: Path) -> float:
    """Seconds from the start of `glmtune train` to the line of its first step."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE), encoding="utf-8")
    command = [sys.executable, "-m", "glmtune", "train", str(recipe), f"output.dir={output}"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = output / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    taken = time.perf_counter() - began
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode())
    return taken


def until_their_step(folder: Path) -> float:
    """Seconds from the start of a Trainer's process to the end of its first step."""
    began = time.time()
    command = [sys.executable, "-m", "benchmarks.start", "--peer", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) - began


def be_the_peer(folder: Path) -> None:
    """Learn one step as the tutorials do, and print when it was done."""
    import peft
    import torch
    import transformers

    import glmtune.auto  # noqa: F401
    from glmtune.model.files import locate

    tokenizer = transformers.AutoTokenizer.from_pretrained(locate("nano"))
    base = transformers.AutoModelForCausalLM.from_pretrained(locate("nano"), dtype=torch.float32)
    config = peft.LoraConfig(r=8, target_modules=["query_key_value"], task_type="CAUSAL_LM")

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["instruction"])["input_ids"]
        answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            print(time.time())

    trainer = transformers.Trainer(
        model=peft.get_peft_model(base, config),
        args=transformers.TrainingArguments(
            output_dir=str(folder / "peer"),
            per_device_train_batch_size=ROWS,
            max_steps=1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=[encode(row) for row in json.loads(TRAIN.read_text(encoding="utf-8"))],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Clock()],
    )
    trainer.remove_callback(transformers.PrinterCallback)  # standard output is for the clock
    trainer.train()


def measure(quick: bool) -> list[Figure]:
    """Start everything several times, in turn."""
    times: dict[str, list[float]] = {"help": [], "ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(1 if quick else 7):
            times["help"].append(until_help())
            times["ours"].append(until_our_step(folder))
            times["peer"].append(until_their_step(folder))
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    return [
        Figure("start", "glmtune --help", "s", middle["help"], limit=0.4, less_is_better=True),
        Figure(
            "start",
            "to the first step",
            "s",
            middle["ours"],
            middle["peer"],
            "Trainer and peft",
            goal=1.0,
            less_is_better=True,
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peer", type=Path)
    known, _ = parser.parse_known_args()
    if known.peer:
        be_the_peer(known.peer)
    else:
        run(measure, __doc__)
