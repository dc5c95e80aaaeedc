"""`glmtune pretrain`: train a model on texts."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glmtune.cli.options import (
    Overrides,
    PretrainRecipeArgument,
    Resume,
    changes_of,
    is_first_rank,
)
from glmtune.cli.printing import echo, print_stopped, print_verdict, training_line
from glmtune.gc_pause import loading

if TYPE_CHECKING:
    from glmtune.recipe.recipe import PretrainRecipe


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

    changes = changes_of("pretrain", recipe, [*(overrides or []), *context.args])
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
    is_model = (result.adapter_dir / "config.json").is_file()
    print_verdict(result.proofs)
    echo(training_line("Model" if is_model else "Adapter", result))
    echo(next_line(resolved, result.adapter_dir))


def next_line(recipe: "PretrainRecipe", trained: Path) -> str:
    """Return a line with the command that comes next; only ROWS.json is to be replaced in it."""
    from glmtune.recipe.methods import FreezeSection, FullSection, PeftSection

    base = recipe.model.name_or_path
    names = ["data.train=ROWS.json", f"output.dir={trained}-chat"]
    if recipe.model.config:  # a small model of our own: all of its weights, as nano's
        changes = ["nano-chat", f"model.name_or_path={trained}"]
    elif isinstance(recipe.adapter, FullSection | FreezeSection):
        changes = ["chatglm3-lora", f"model.name_or_path={trained}"]
    elif isinstance(recipe.adapter, PeftSection):  # continued, with all of its own values
        section = recipe.adapter.model_dump(mode="json", exclude_defaults=True)
        section.pop("init_lora_weights", None)
        section |= {"method": recipe.adapter.method, "name_or_path": str(trained)}
        adapter = json.dumps(section, ensure_ascii=False)
        changes = ["chatglm3-lora", f"model.name_or_path={base}", f"adapter={adapter}"]
    else:
        return f"Talk to it:  {shlex.join(['glmtune', 'chat', base, '--adapter', str(trained)])}"
    return f"Teach it to answer:  {shlex.join(['glmtune', 'train', *changes, *names])}"
