"""`glmtune pretrain`: train a model on texts."""

from pathlib import Path

import typer

from glmtune.cli.options import (
    Overrides,
    PretrainRecipeArgument,
    Resume,
    as_overrides,
    is_first_rank,
)
from glmtune.cli.printing import print_stopped, training_line
from glmtune.gc_pause import loading


def pretrain(
    context: typer.Context,
    recipe: PretrainRecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model on texts, from scratch or from a checkpoint.

    Example: glmtune pretrain nano-pretrain data.train=corpus.jsonl
    """
    from glmtune.recipe.reading import load_recipe
    from glmtune.recipe.recipe import PretrainRecipe
    from glmtune.train.run_folder import check_folder

    changes = as_overrides([*(overrides or []), *context.args])
    resolved = load_recipe(recipe, changes, kind=PretrainRecipe)
    if is_first_rank():  # before torch loads
        output = Path(resolved.output.dir)
        check_folder(output, resume=resume, overwrite=resolved.output.overwrite)

    with loading():
        from glmtune.train.pretrain import pretrain as run

    result = run(resolved, resume=resume)
    if not result.is_finished:
        print_stopped(result)
        raise typer.Exit(130)
    typer.echo(training_line("Model", result))
    typer.echo(
        "Teach it to answer:  glmtune train RECIPE "
        f"model.name_or_path={result.adapter_dir} adapter.method=full"
    )
