"""Try many mutated inputs: `python -m tests.fuzz --count 100000 --seed 7`.

`--surface NAME` tries one surface, and `--only N` its N-th input alone, with the traceback that it
ends in. Exits with 1 if an input ended in anything but a result or an error in sentences.
"""

import argparse
import faulthandler
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.fuzz.surface import Healthy, Outcome, Surface, try_surface
from tests.fuzz.surfaces import shares
from tests.tiny_model import make_llama

HANG_SECONDS = 300


def main() -> int:
    """Try every surface, print what became of its inputs."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--surface")
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    chosen = [
        (surface, count)
        for surface, count in shares(arguments.count)
        if arguments.surface in (None, surface.name)
    ]
    print(f"seed {arguments.seed}, {date.today()}", flush=True)
    total, num_faults, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="glmtune-fuzz-") as name:
        os.environ["GLMTUNE_CACHE"] = f"{name}/cache"
        llama = Path(name) / "llama"
        llama.mkdir()
        healthy = Healthy(Path(name), llama=make_llama(llama))
        for surface, count in chosen:
            numbers = (
                range(count)
                if arguments.only is None
                else range(arguments.only, arguments.only + 1)
            )
            outcome = _try(surface, healthy, Path(name) / "input", arguments.seed, numbers)
            _print(surface, outcome)
            total += outcome.num_inputs
            num_faults += sum(outcome.counts.values())
    print(f"{total:,} inputs, {num_faults} wrong, {time.monotonic() - began:.0f} s")
    return min(1, num_faults)


def _try(surface: Surface, healthy: Healthy, folder: Path, seed: str, numbers: range) -> Outcome:
    attempt = surface.prepare(healthy)
    whole = Outcome()
    for first in range(numbers.start, numbers.stop, 50):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        part = range(first, min(first + 50, numbers.stop))
        whole.merge(try_surface(surface, attempt, folder, seed, part))
        faulthandler.cancel_dump_traceback_later()
    return whole


def _print(surface: Surface, outcome: Outcome) -> None:
    print(
        f"{surface.name:26} {outcome.num_inputs:7,} inputs  {outcome.num_refused:7,} refused  "
        f"{sum(outcome.counts.values()):4} wrong  slowest {outcome.slowest_seconds:.1f} s",
        flush=True,
    )
    for kind, what in outcome.faults.items():
        print(f"    {outcome.counts[kind]} x {kind}: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
