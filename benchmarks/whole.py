"""A step of all layers of a checkpoint beside a Trainer's: measured, not extrapolated.

    python -m benchmarks.checkpoint FOLDER TOKENIZER      28 layers with random weights
    python -m benchmarks.whole FOLDER [--rows 16] [--turns 1]

The pipelines, rows and processes are those of `benchmarks.step`. Both processes map the same
files, so that 28 layers in bfloat16 need 18 GiB; a step of 16 rows takes some minutes by each.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import table
from benchmarks.step import OURS, compare, figure
from glmtune.load import load_config
from glmtune.train import heap


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    heap.set_defaults()  # as the command does
    layers = load_config(arguments.checkpoint).num_hidden_layers
    found, rate = compare(arguments.checkpoint, [layers], arguments.rows, arguments.turns)
    figures = [figure(found, rate, name, layers) for name in found if name != OURS]
    print(table(replace(each, what=f"{layers} layers") for each in figures))


if __name__ == "__main__":
    main()
