"""The table of speed and memory: ours, a peer, the ratio, and a floor for this machine.

    python -m benchmarks [--quick] [--tokenizer FOLDER --rows ROWS.json]

Each point is a module of this folder, run in a process of its own, so that none inherits the
memory of another. Preparation of data needs ChatGLM3's tokenizer and a JSON array of alpaca rows;
without them it is left out, and the output says so.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks import data
from benchmarks.figures import Figure, table
from glmtune.train import process_memory

POINTS = ("step", "int8", "memory", "start", "generation")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller")
    parser.add_argument("--tokenizer", type=Path, help="folder of ChatGLM3's tokenizer")
    parser.add_argument("--rows", type=Path, help="JSON array of alpaca rows")
    parser.add_argument("--point", choices=POINTS, help=argparse.SUPPRESS)  # in a fresh process
    arguments = parser.parse_args()
    process_memory.set_defaults()  # as the command does
    if arguments.point:
        found = import_module(f"benchmarks.{arguments.point}").measure(arguments.quick)
        print(json.dumps([asdict(figure) for figure in found]))
        return
    figures: list[Figure] = []
    for point in POINTS:
        figures += fresh(point, arguments.quick)
    if arguments.tokenizer and arguments.rows:
        figures += data.measure(arguments.quick, arguments.tokenizer, arguments.rows)
    print(f"{datetime.now(UTC):%d %B %Y}, {os.cpu_count()} cores, {cpu()}\n")
    print(table(figures))
    if not (arguments.tokenizer and arguments.rows):
        print("\nPreparation was left out: it needs --tokenizer and --rows.")


def fresh(point: str, quick: bool) -> list[Figure]:
    """Measure a point in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--point", point]
    if quick:
        command.append("--quick")
    began = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmarks.{point} failed:\n{done.stderr}")
    print(f"{point}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return [Figure(**values) for values in json.loads(done.stdout.splitlines()[-1])]


def cpu() -> str:
    """The name of the processor, and which instructions for matrix products it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in known.items()}
    has = [kind for kind in ("avx512_bf16", "avx512_vnni", "amx_bf16") if kind in named["flags"]]
    return f"{named.get('model name', platform.machine())} ({', '.join(has) or 'no bfloat16'})"


if __name__ == "__main__":
    main()
