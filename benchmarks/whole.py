"""A step of all layers of a checkpoint, next to a Trainer's and in int8: not extrapolated.

    python -m benchmarks.checkpoint FOLDER TOKENIZER      28 layers with random weights
    python -m benchmarks.whole FOLDER [--rows 16] [--turns 1]

The pipelines, rows and processes are those of `benchmarks.step` and `benchmarks.int8`. Both
processes map the same files, so that 28 layers in bfloat16 need 18 GiB, and beside int8 20. It
takes a quarter of an hour.
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from benchmarks.figures import Figure, table
from benchmarks.int8 import KINDS, learn
from benchmarks.slices import packs_of, rows_of, seconds
from benchmarks.step import OURS, compare, figure
from glmtune.methods import lora
from glmtune.model.load import load_config, load_frozen_model
from glmtune.recipe.methods import LoraSection
from glmtune.train import process_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    process_memory.set_defaults()  # as the command does
    layers = load_config(arguments.checkpoint).num_hidden_layers
    found, rate = compare(arguments.checkpoint, [layers], arguments.rows, arguments.turns)
    figures = [figure(found, rate, name, layers) for name in found if name != OURS]
    figures.append(in_int8(arguments.checkpoint, arguments.rows))
    print(table(replace(each, what=f"{layers} layers") for each in figures))


def in_int8(checkpoint: Path, num_rows: int) -> Figure:
    """Learn the same packs in bfloat16 and int8 in turn."""
    cpu = torch.device("cpu")
    section = LoraSection(r=8, target_modules=("query_key_value",))
    models = {}
    for kind in KINDS:
        compute: Literal["int8"] | None = "int8" if kind == "int8" else None
        base = load_frozen_model(checkpoint, dtype="bfloat16", device=cpu, compute=compute)
        base.set_attn_implementation("packed")
        models[kind] = lora.attach(base, section)
    packs = packs_of(rows_of(num_rows))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for pack in [packs[0], *packs]:  # the first pack warms up
        for kind, model in models.items():
            taken = seconds(partial(learn, model, pack))
            times[kind].append(taken / pack.input_ids.numel())
    wide, rounded = (statistics.median(times[kind][1:]) for kind in KINDS)
    return Figure("int8 step", "", "tokens/s", 1 / rounded, 1 / wide, "our bfloat16", goal=1.6)


if __name__ == "__main__":
    main()
