"""`glmtune train`."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from glmtune.errors import RecipeError
from glmtune.gc_pause import loading


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Change single values; --key value works too."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in output.dir.")
    ] = False,
    nproc: Annotated[
        int, typer.Option("--nproc", min=1, help="Processes on this machine: one for each GPU.")
    ] = 1,
) -> None:
    """Fine-tune a model: an adapter over it, or its own weights.

    Example: glmtune train recipes/chatglm3-lora.yaml model.name_or_path=./chatglm3-6b
    data.train=rows.json adapter.r=16
    """
    from glmtune.recipe.reading import load_recipe

    changes = as_overrides([*(overrides or []), *context.args])
    resolved = load_recipe(recipe, changes)
    if nproc > 1:
        from glmtune.train.launch import launch

        quiet = ["--quiet"] if logging.getLogger("glmtune").level > logging.INFO else []
        going_on = ["--resume"] if resume else []
        raise typer.Exit(launch([*quiet, "train", str(recipe), *changes, *going_on], nproc))

    with loading():  # torch too, so `--help` stays instant
        from glmtune.train.run import fine_tune

    result = fine_tune(resolved, resume=resume)
    if int(os.environ.get("RANK", "0")) > 0:  # rank 0 says it
        raise typer.Exit(0 if result.is_finished else 130)
    if not result.is_finished:
        typer.echo(
            f"Stopped after {result.num_steps} steps; a checkpoint is in {result.adapter_dir}. "
            "Go on with the same command and --resume.",
            err=True,
        )
        raise typer.Exit(130)
    if not result.num_steps:
        typer.echo(f"Held-out loss {result.eval_loss:.4f}: {result.adapter_dir / 'report.html'}")
        return
    measured = "" if result.loss is None else f", loss {result.loss:.4f}"
    measured += "" if result.eval_loss is None else f", held-out loss {result.eval_loss:.4f}"
    is_whole = (result.adapter_dir / "config.json").is_file()
    what = "Model" if is_whole else "Adapter"
    typer.echo(f"{what} after {result.num_steps} steps{measured}: {result.adapter_dir}")
    folder = "" if is_whole else f"{resolved.model.name_or_path} --adapter "
    typer.echo(f"Talk to it:  glmtune chat {folder}{result.adapter_dir}")


def as_overrides(arguments: list[str]) -> list[str]:
    """Turn `--key value`, `--key=value` and `key=value` all into `key=value`.

    Raises:
        RecipeError: an argument is none of these.
    """
    overrides: list[str] = []
    waiting: str | None = None
    for argument in arguments:
        if waiting is not None and not argument.startswith("--"):
            overrides.append(f"{waiting}={argument}")
            waiting = None
            continue
        if waiting is not None:
            overrides.append(f"{waiting}=true")
            waiting = None
        if argument.startswith("--"):
            name = argument[2:]
            if "=" in name:
                overrides.append(name)
            else:
                waiting = name
        elif "=" in argument:
            overrides.append(argument)
        else:
            raise RecipeError(
                f"{argument!r}: expected KEY=VALUE or --key VALUE after the recipe, "
                "such as training.learning_rate=5e-5."
            )
    if waiting is not None:
        overrides.append(f"{waiting}=true")
    return overrides
