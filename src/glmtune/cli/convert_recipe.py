"""`glmtune convert-recipe`."""

import os.path
import shlex
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.printing import echo


def convert_recipe(
    file: Annotated[Path, typer.Argument(help="YAML file of another tool.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: FILE.glmtune.yaml here."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model to fine-tune.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder of the data sets in FILE.")
    ] = None,
) -> None:
    """Convert a recipe of ChatGLM3's finetune_demo, LLaMA-Factory, ms-swift or Axolotl to ours.

    Example: glmtune convert-recipe configs/lora.yaml --model ./chatglm3-6b --data-dir data
    """
    from glmtune.errors import OutputError
    from glmtune.files import write_atomically
    from glmtune.recipe import other_tools

    output = output or Path(f"{file.stem}.glmtune.yaml")
    if os.path.exists(output):
        raise OutputError(f"{output}: already exists. Choose another name: --output FILE.")
    converted = other_tools.convert_recipe(file, model=model, data_dir=data_dir)
    write_atomically(output, converted.to_yaml(str(file)))
    echo(f"{output}: from {converted.tool}")
    for line in converted.not_converted:
        echo(f"not converted: {line}.")
    if converted.not_needed:
        echo(f"not needed here: {', '.join(converted.not_needed)}")
    echo(f"Train:  {shlex.join(['glmtune', 'train', str(output)])}")
