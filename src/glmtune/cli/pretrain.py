"""`glmtune pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.train import as_overrides
from glmtune.gc_pause import loading


def pretrain(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Change single values; --key value works too."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in output.dir.")
    ] = False,
) -> None:
    """Train a model on texts, from scratch or from a checkpoint.

    Example: glmtune pretrain recipes/nano-pretrain.yaml data.train=corpus.jsonl
    """
    from glmtune.recipe.reading import load_recipe
    from glmtune.recipe.recipe import PretrainRecipe

    arguments = as_overrides([*(overrides or []), *context.args])
    resolved = load_recipe(recipe, arguments, kind=PretrainRecipe)

    with loading():
        from glmtune.train.pretrain import pretrain as run

    result = run(resolved, resume=resume)
    if not result.is_finished:
        typer.echo(
            f"Stopped after {result.num_steps} steps; a checkpoint is in {result.adapter_dir}. "
            "Go on with the same command and --resume.",
            err=True,
        )
        raise typer.Exit(130)
    measured = "" if result.loss is None else f", loss {result.loss:.4f}"
    measured += "" if result.eval_loss is None else f", held-out loss {result.eval_loss:.4f}"
    typer.echo(f"Model after {result.num_steps} steps{measured}: {result.adapter_dir}")
    typer.echo(
        "Teach it to answer:  glmtune train RECIPE "
        f"model.name_or_path={result.adapter_dir} adapter.method=full"
    )
