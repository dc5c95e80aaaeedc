"""`glmtune convert-recipe`."""

from pathlib import Path
from typing import Annotated

import typer


def convert_recipe(
    file: Annotated[Path, typer.Argument(help="YAML file of another tool.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default FILE.glmtune.yaml, here.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model to tune.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder of the data sets that it names.")
    ] = None,
) -> None:
    """Make a recipe of ChatGLM3's finetune_demo or of LLaMA-Factory one of ours.

    Example: glmtune convert-recipe configs/lora.yaml --model ./chatglm3-6b --data-dir data
    """
    from glmtune.errors import OutputError
    from glmtune.files import write_atomically
    from glmtune.recipe import other_tools

    output = output or Path(f"{file.stem}.glmtune.yaml")
    if output.exists():
        raise OutputError(f"{output}: is there already. Choose another name: --output FILE.")
    converted = other_tools.convert_recipe(file, model=model, data_dir=data_dir)
    write_atomically(output, converted.to_yaml(str(file)))
    typer.echo(f"{output}: from {converted.kind}")
    for line in converted.left_out:
        typer.echo(f"not carried over: {line}.")
    if converted.needless:
        typer.echo(f"not needed here: {', '.join(converted.needless)}")
    typer.echo(f"Train:  glmtune train {output}")
