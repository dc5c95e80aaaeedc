"""`glmtune train`: fine-tune a model."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.given_recipe import (
    DataOption,
    ModelOption,
    OptionalRecipe,
    OutputOption,
    given_recipe,
    show_choices,
)
from glmtune.cli.options import Overrides, Resume, is_first_rank
from glmtune.cli.printing import echo, print_stopped, print_verdict, training_line
from glmtune.gc_pause import loading

if TYPE_CHECKING:
    from glmtune.recipe.recipe import Recipe
    from glmtune.train.run import Result


def train(
    context: typer.Context,
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    model: ModelOption = None,
    data: DataOption = None,
    output: OutputOption = None,
    resume: Resume = False,
    nproc: Annotated[
        int,
        typer.Option("--nproc", min=1, help="Number of processes on this machine, one per GPU."),
    ] = 1,
) -> None:
    """Fine-tune a model: an adapter over it, or its own weights.

    Example: glmtune train --model ./chatglm3-6b --data rows.json
    """
    from glmtune.train.run_folder import check_folder

    words = [*(overrides or []), *context.args]
    given = given_recipe("train", recipe, words, model=model, data=data, output=output)
    resolved = given.load()
    if is_first_rank():  # before torch loads, and before other ranks can see files of this run
        folder = Path(resolved.output.dir)
        check_folder(folder, resume=resume, overwrite=resolved.output.overwrite)
    show_choices(given)
    if nproc > 1:
        from glmtune.train.launch import launch

        quiet = ["--quiet"] if logging.getLogger("glmtune").level > logging.INFO else []
        resuming = ["--resume"] if resume else []
        raise typer.Exit(
            launch([*quiet, "train", str(given.file), *given.changes, *resuming], nproc)
        )

    with loading():  # torch too, so that `--help` is fast
        from glmtune.train.run import fine_tune

    result = fine_tune(resolved, resume=resume)
    if is_first_rank():
        report_result(resolved, result)
    if not result.is_finished:
        raise typer.Exit(130)


def report_result(recipe: "Recipe", result: "Result") -> None:
    """Print what a run measured and wrote, and how to use it."""
    if not result.is_finished:
        print_stopped(result)
        return
    if not result.num_steps:
        echo(f"Held-out loss {result.eval_loss:.4f}: {result.adapter_dir / 'report.html'}")
        return
    is_model = (result.adapter_dir / "config.json").is_file()
    what = "Model" if is_model else "Adapter"
    print_verdict(result.proofs)
    echo(training_line(what, result))
    base = [] if is_model else [str(recipe.model.name_or_path), "--adapter"]
    echo(f"Talk to it:  {shlex.join(['glmtune', 'chat', *base, str(result.adapter_dir)])}")
