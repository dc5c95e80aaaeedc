"""Arguments and options that commands share, and the recipes that they result in."""

import itertools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune import messages
from glmtune.cli.localized import LocalGroup, language_option
from glmtune.errors import RecipeError
from glmtune.recipe.choices import Dtype, Layout
from glmtune.recipe.names import HINTS
from glmtune.recipe.shipped import FINE_TUNING, PRETRAINING, is_recipe

if TYPE_CHECKING:
    from glmtune.recipe.recipe import AnyRecipe, Recipe

PretrainRecipeArgument = Annotated[
    Path,
    typer.Argument(
        help=f"YAML file, or a recipe of the package: {', '.join(PRETRAINING)}.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Change values of the recipe; --key value works too."),
]
RowsOverrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Change values of the recipe.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume from the newest checkpoint in output.dir.")
]
MODEL_HELP = "Folder of a model or an adapter, a hub id, or nano."
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--model", help="Model folder, hub id or nano; only its tokenizer is loaded."),
]
AdapterOption = Annotated[
    Path | None,
    typer.Option("--adapter", help="Folder of an adapter, as `glmtune train` writes it."),
]
PromptLayout = Annotated[
    Layout | None, typer.Option(help="Layout of prompts; default: that of the adapter.")
]
RowLayout = Annotated[Layout | None, typer.Option(help="Layout of rows as token ids.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Maximum length of a row, in tokens.")]
RowFormat = Annotated[
    str | None, typer.Option(help="Format of the rows; default: detected from the columns.")
]
DtypeOption = Annotated[Dtype, typer.Option(help="Dtype of the weights.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AnyTemplate = Annotated[
    bool, typer.Option("--any-template", help="Allow an adapter trained with another template.")
]

ExportOutput = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)
]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="Folder or hub id of the base; default: what the adapter names."),
]
MaxShardSize = Annotated[str, typer.Option(help="Maximum size of a file of weights.")]
Proof = Annotated[
    bool, typer.Option(help="Open the result again and compare its answers with the source.")
]

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")]
Temperature = Annotated[
    float, typer.Option(min=0, help="Sampling temperature; 0 for greedy decoding.")
]
TopP = Annotated[
    float,
    typer.Option(
        min=0.01, max=1, help="Sample from the most likely tokens of this total probability."
    ),
]
TopK = Annotated[
    int, typer.Option(min=0, help="Sample from this many of the most likely tokens; 0 for all.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(min=0.01, help="Penalty of repeated tokens; 1 for none.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of sampling.")]


def is_first_rank() -> bool:
    """Whether this process is rank 0 of those that train together, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


class OptionsAnywhere(LocalGroup):
    """A group of commands whose `--quiet` and `--lang` may come after the command too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move these options to the front, where the group reads them."""
        end = args.index("--") if "--" in args else len(args)
        first: list[str] = []
        others: list[str] = []
        words = iter(args[:end])
        for word in words:
            if word in ("--quiet", "-q") or word.startswith("--lang="):
                first.append(word)
            elif word == "--lang":
                first += [word, *itertools.islice(words, 1)]
            else:
                others.append(word)
        if (name := language_option(args)) in messages.LANGUAGES:
            messages.choose(str(name))  # before anything is refused
        return super().parse_args(ctx, [*first, *others, *args[end:]])


def changes_of(command: str, recipe: Path, arguments: Sequence[str]) -> list[str]:
    """Return the changes of a recipe as `key=value`.

    Args:
        command: its name, such as `train`.
        recipe: the first argument.
        arguments: all that follow it.

    Raises:
        RecipeError: an option stands where the recipe is expected, or an argument is no change.
    """
    if not str(recipe).startswith("-"):
        return as_overrides(list(arguments))
    words = [str(recipe), *arguments]
    given = next((word for word in words if is_recipe(word)), None)
    changes = as_overrides([word for word in words if word != given])
    known = [_with_our_name(change) for change in changes]
    shown = shlex.join(["glmtune", command, given or EXAMPLE_RECIPES[command], *known])
    raise RecipeError(
        f"{str(recipe)!r}: expected a recipe as the first argument, then its changes: {shown}"
    )


EXAMPLE_RECIPES = {"train": FINE_TUNING[1], "plan": FINE_TUNING[1], "pretrain": PRETRAINING[0]}


def _with_our_name(change: str) -> str:
    name, equals, value = change.partition("=")
    return f"{HINTS.get(name, name)}{equals}{value}"


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
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            if equals:
                overrides.append(f"{name}={value}")
            else:
                waiting = name
        elif "=" in argument:
            overrides.append(argument)
        elif "＝" in argument:
            raise RecipeError(
                f"{argument!r}: has the full-width '＝'. Write {argument.replace('＝', '=')}"
            )
        else:
            raise RecipeError(
                f"{argument!r}: expected KEY=VALUE or --key VALUE after the recipe, "
                "such as training.learning_rate=5e-5."
            )
    if waiting is not None:
        overrides.append(f"{waiting}=true")
    return overrides


def recipe_for_rows(
    data: str,
    values: Mapping[str, str | int | None],
    overrides: list[str],
    kind: "type[AnyRecipe]",
    *,
    assumed: Mapping[str, Mapping[str, Any]] | None = None,
) -> "AnyRecipe":
    """Make the recipe that would train on rows or texts.

    Args:
        data: rows as in data.train, or a recipe.
        values: values of options by their key; None where an option was not given. They come
            before `overrides` and change a recipe too.
        overrides: `key=value`.
        kind: `Recipe` or `PretrainRecipe`.
        assumed: keys by section for rows that come without a recipe; without a model in it,
            `values` or `overrides` must name one.

    Raises:
        RecipeError: the recipe cannot be read, a value is invalid, or a model is missing.
    """
    from glmtune.recipe.reading import build_recipe, load_recipe

    for override in overrides:
        if "=" not in override:
            raise RecipeError(
                f"{override!r}: expected KEY=VALUE. Several files: data.train=[a, b]."
            )
    given = [
        f"{key}={json.dumps(value, ensure_ascii=False)}"  # JSON is YAML that quotes every text
        for key, value in values.items()
        if value is not None
    ]
    if is_recipe(data):
        return load_recipe(data, [*given, *overrides], kind=kind)
    assumed = assumed or {}
    names_model = ("model.name_or_path=", "model_name_or_path=")
    if "model" not in assumed and not any(
        each.startswith(names_model) for each in [*given, *overrides]
    ):
        raise RecipeError(
            "--model is missing: a model's tokenizer turns rows into tokens. "
            f"Try: glmtune inspect {data} --model ./chatglm3-6b"
        )
    tree = {
        **assumed,
        "data": {"train": data, **assumed.get("data", {})},
        "output": {"dir": os.devnull},  # nothing is written
    }
    return build_recipe(tree, [*given, *overrides], source=data, kind=kind)


def shows_pairs(recipe: "Recipe", data: str) -> bool | None:
    """Whether rows are read as pairs of answers; None: where a row has two answers.

    Args:
        recipe: read from a file, or made for some rows.
        data: the name of that file, or of those rows.
    """
    if recipe.is_preference:
        return True
    return False if is_recipe(data) else None
