"""What a run keeps in its output folder, and whether a new run may use that folder.

Nothing heavy is imported, so a command refuses a folder that holds a run before PyTorch loads.
"""

import re
from pathlib import Path

from glmtune.errors import OutputError
from glmtune.methods.adapter_folder import CARD
from glmtune.prove.metrics import METRICS
from glmtune.recipe.recipe import RECIPE

RUN_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "prompt_encoder.safetensors",  # methods/virtual_tokens.py
    CARD,
    "README.md",
    RECIPE,
    METRICS,
    "loss.svg",
    "loss.png",  # of earlier versions
    "report.html",
    "report.json",
)
# Of a complete model. They may be a user's own, unless our card is there too.
MODEL_FILES = ("config.json", "generation_config.json", "pytorch_model.bin")


def check_folder(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder whose contents a run would replace.

    Raises:
        OutputError: it is a file, or holds a run or a model and neither `resume` nor `overwrite`
            was asked for.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file, expected a folder. Choose another output.dir.")
    held = [path.name for path in run_files(output)]
    held += [path.name for path in checkpoints(output)] if output.is_dir() else []
    if held and not (resume or overwrite):
        raise OutputError(
            f"{output}: already holds a run ({', '.join(held[:3])}). Continue it with --resume, "
            "choose another output.dir, or replace it with output.overwrite=true."
        )
    if (output / "config.json").exists() and not (output / CARD).exists():
        raise OutputError(
            f"{output}: holds a model that glmtune did not write. Choose another output.dir."
        )
    if resume and overwrite:
        raise OutputError(
            "--resume and output.overwrite=true contradict each other: one keeps the run, the "
            "other replaces it. Give one of them."
        )


def run_files(output: Path) -> list[Path]:
    """List the existing files of a run; those of a model only with our card."""
    found = [output / name for name in RUN_FILES]
    if (output / CARD).is_file():
        found += [output / name for name in MODEL_FILES]
        found += weights(output)
    return [path for path in found if path.exists()]


def weights(output: Path) -> list[Path]:
    """List the weights of a complete model, and their index."""
    return [*output.glob("model*.safetensors"), *output.glob("model.safetensors.index.json")]


def checkpoints(output: Path) -> list[Path]:
    """List the checkpoints in an output folder, oldest first."""
    named = [
        (int(match[1]), path)
        for path in output.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(named)]
