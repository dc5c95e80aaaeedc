"""A tuned nano in float32 -> the folder in the package, in bfloat16.

python recipes/nano/ship.py nano-chat src/glmtune/model/nano
"""

import argparse
import shutil
from pathlib import Path

import torch

from glmtune.model.load import load_model

KEPT = ("tokenizer.model", "tokenizer_config.json", "glmtune.json")


def main() -> None:
    """Read the command line and write the model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tuned", type=Path, help="what nano-chat.yaml wrote")
    parser.add_argument("folder", type=Path, help="where the model goes; its README.md stays")
    arguments = parser.parse_args()
    load_model(arguments.tuned, dtype=torch.bfloat16).save_pretrained(arguments.folder)
    for name in KEPT:
        shutil.copyfile(arguments.tuned / name, arguments.folder / name)


if __name__ == "__main__":
    main()
