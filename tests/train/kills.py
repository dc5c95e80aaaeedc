"""Kill a run at random, resume it, and kill it again: it must end in the same bytes.

    python -m tests.train.kills 1000 --seed 7

One process imports PyTorch; each attempt is a fork of it that trains with `resume=True` until
SIGKILL ends it at a random moment. After every kill, whatever has its final name must be whole. An
attempt that comes to its end is compared with a run that nobody disturbed, and the next one starts
with an empty folder.
"""

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = [{"instruction": f"{n} 加一等于几", "output": f"等于 {n + 1}。"} for n in range(8)]
ADAPTER = "adapter_model.safetensors"
# What a finished run is compared by; other files name times and paths.
SAME_BYTES = (ADAPTER, "adapter_config.json", "tokenizer.json", "chat_template.jinja")
SAME_NUMBERS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


def recipe_for(model: Path, rows: Path, output: Path) -> Any:
    """A run of five steps, each with a checkpoint and an evaluation."""
    from glmtune.recipe.reading import build_recipe

    return build_recipe(
        {
            "model": {"name_or_path": str(model), "dtype": "float32"},
            "data": {"train": str(rows), "max_length": 60, "eval_fraction": 0.2},
            "adapter": {"r": 2, "lora_dropout": 0.1},
            "training": {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 2,
                "max_steps": 5,
                "learning_rate": 5e-3,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "use_cpu": True,
            },
            "checks": {"stock_reader": False, "stop_prompts": 1, "max_new_tokens": 2},
            "output": {"dir": str(output), "report_to": "none"},
        }
    )


def measured(output: Path) -> list[dict[str, float]]:
    """The metrics that depend neither on the clock nor on the process."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key in SAME_NUMBERS} for line in lines]


def differences(output: Path, whole: Path) -> list[str]:
    """What of a finished run is not as in the run that nobody disturbed."""
    found = [
        f"{name} has other bytes"
        for name in SAME_BYTES
        if (output / name).read_bytes() != (whole / name).read_bytes()
    ]
    if measured(output) != measured(whole):
        found.append("metrics.jsonl has other numbers")
    if sorted(os.listdir(output)) != sorted(os.listdir(whole)):
        found.append(f"there are {sorted(set(os.listdir(output)) ^ set(os.listdir(whole)))}")
    return found


def half_written(output: Path) -> list[str]:
    """What has its final name after a kill, and is not whole."""
    from glmtune.model.card import find_change
    from glmtune.train.checkpoint import damage
    from glmtune.train.run_folder import checkpoints

    found = [f"{path.name}: {damage(path)}" for path in checkpoints(output) if damage(path)]
    if (output / "adapter_config.json").exists():  # the last to be published
        if not (output / ADAPTER).exists():
            found.append(f"there is no {ADAPTER}")
        found += filter(None, [find_change(output)[1]])
    for path in output.glob("*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            found.append(f"{path.name}: {error}")
    return found


def phase(output: Path) -> str:
    """What a killed run was doing, by what it left."""
    names = set(os.listdir(output)) if output.is_dir() else set()
    if any(name.startswith(".checkpoint") for name in names):
        return "while a checkpoint was written"
    if "report.html" in names:
        return "after the report"
    if "adapter_config.json" in names:
        return "in the proofs or the report"
    if "adapter" in names or any(name.startswith(".adapter") for name in names):
        return "while the adapter was published"
    if any(name.startswith("checkpoint-") for name in names):
        return "between checkpoints"
    return "before the first checkpoint"


def in_a_fork(work: Callable[[], None], log: Path) -> int:
    """Start a fork that works and exits with 0, or with 1 after an error; returns its id."""
    if (process := os.fork()) == 0:
        code = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            work()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return process


def ended(process: int) -> int | None:
    """The exit status of a fork, None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """Make the tiny model and the rows."""
    from tests.tiny_model import make_model, make_tokenizer

    model, rows = folder / "model", folder / "rows.json"
    model.mkdir()
    make_model(model, make_tokenizer(model))
    rows.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return model, rows


class Killer:
    """Kills runs in a folder of its own.

    Attributes:
        kills: how many there were, by what the run was doing.
        finished: how many runs came to their end, each compared with the undisturbed one.
        faults: what was not as it should be.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from glmtune.train.run import fine_tune

        self.kills: Counter[str] = Counter()
        self.finished = 0
        self.faults: list[str] = []
        self._draw = random.Random(seed)
        self._log = folder / "log"
        self._whole, self._killed = folder / "whole", folder / "killed"
        model, rows = make_inputs(folder)
        recipe = recipe_for(model, rows, self._killed)
        self._attempt = lambda: fine_tune(recipe, resume=True)
        whole = recipe_for(model, rows, self._whole)
        fine_tune(whole)  # here, so that the forks need not import anything
        gc.collect()
        gc.freeze()  # or each fork that collects garbage copies what all of them share
        began = time.monotonic()
        self.finish()
        self._seconds = time.monotonic() - began

    def kill(self) -> None:
        """Kill one attempt at a random moment; one that is faster is compared instead."""
        process = in_a_fork(self._attempt, self._log)
        until = time.monotonic() + self._draw.uniform(0, 1.1 * self._seconds)
        while (status := ended(process)) is None and time.monotonic() < until:
            time.sleep(0.002)
        if status is None:
            os.kill(process, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status == -signal.SIGKILL:
            self.kills[phase(self._killed)] += 1
            self.faults += half_written(self._killed)
        else:
            self._compare(status)

    def finish(self) -> None:
        """Let the last run come to its end, and compare it."""
        process = in_a_fork(self._attempt, self._log)
        self._compare(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))

    def _compare(self, status: int) -> None:
        if status:
            self.faults.append(f"resuming ended in {status}: {self._log.read_text()[-2000:]}")
        else:
            self.faults += differences(self._killed, self._whole)
            self.finished += 1
        shutil.rmtree(self._killed, ignore_errors=True)


def main() -> int:
    """Kill as often as asked for, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.train.kills", description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # prints the counts so far
    with tempfile.TemporaryDirectory(prefix="glmtune-kills-") as name:
        os.environ["GLMTUNE_CACHE"] = f"{name}/cache"
        killer = Killer(Path(name), arguments.seed)
        began = time.monotonic()
        try:
            while killer.kills.total() < arguments.kills and not killer.faults:
                killer.kill()
            if not killer.faults:
                killer.finish()
        except KeyboardInterrupt:
            print("interrupted: the last run was not compared")
    seconds = time.monotonic() - began
    print(
        f"{killer.kills.total()} kills, {killer.finished} runs that came to their end, "
        f"{len(killer.faults)} faults, seed {arguments.seed}, {seconds:.0f} s"
    )
    for doing, number in killer.kills.most_common():
        print(f"{number:6}  {doing}")
    for fault in killer.faults:
        print(f"fault: {fault}")
    return min(1, len(killer.faults))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
