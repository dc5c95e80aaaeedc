"""`glmtune inspect`: show rows or texts as the tokens that training sees."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glmtune.cli.options import (
    MaxLength,
    RowFormat,
    RowLayout,
    RowsOverrides,
    TokenizerOption,
    recipe_for_rows,
    shows_pairs,
)
from glmtune.cli.printing import LEARNED, make_console, print_row, printable
from glmtune.errors import RecipeError
from glmtune.gc_pause import loading
from glmtune.messages import translate
from glmtune.recipe.choices import Overlong

if TYPE_CHECKING:
    from rich.console import Console

    from glmtune.inspect.objective import SeenInfilling
    from glmtune.recipe.recipe import PretrainRecipe, Recipe

Objective = Literal[
    "token", "sentence", "document", "causal", "masked-lm", "prefix-lm", "causal-lm"
]
LONGEST_DRAWN = 96  # tokens; the attention mask of a longer text is not drawn
ATTENDS_A, ATTENDS_B, MASKED = "█", "▒", "·"


def inspect(
    data: Annotated[
        str, typer.Argument(help="Rows as in data.train, or a recipe.", show_default=False)
    ],
    overrides: RowsOverrides = None,
    model: TokenizerOption = None,
    row: Annotated[
        int, typer.Option("--row", min=1, help="Number of the first row to show, from 1.")
    ] = 1,
    count: Annotated[int, typer.Option("-n", min=1, help="Number of rows to show.")] = 1,
    layout: RowLayout = None,
    max_length: MaxLength = None,
    overlong: Annotated[Overlong | None, typer.Option(help="What to do with longer rows.")] = None,
    format: RowFormat = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="Read a field from another column."),
    ] = None,
    roles: Annotated[
        list[str] | None,
        typer.Option(metavar="THEIRS=OURS", help="Map a role in the file to ours."),
    ] = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="Print one line per piece, with its ids.")
    ] = False,
    objective: Annotated[
        Objective | None,
        typer.Option(help="Show a text as pre-training sees it, with only this objective."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write an HTML page: these rows, the worst rows, totals."),
    ] = None,
) -> None:
    """Show rows as the tokens that training sees, and which of them are learned.

    Example: glmtune inspect rows.json --model ./chatglm3-6b --row 3

    Example: glmtune inspect text.txt --model ./chatglm3-6b --objective masked-lm
    """
    values = {
        "model.name_or_path": model,
        "data.layout": layout,
        "data.max_length": max_length,
        "data.overlong": overlong,
        "data.format": format,
        **_entries("data.columns", columns),
        **_entries("data.roles", roles),
    }
    from glmtune.recipe.recipe import PretrainRecipe, Recipe

    numbers = range(row, row + count)
    if objective is not None:
        if html is not None:
            raise RecipeError("--html shows rows for fine-tuning. Leave it out with --objective.")
        texts = recipe_for_rows(data, values, overrides or [], PretrainRecipe)
        print_texts(texts, objective, numbers)
        return
    recipe = recipe_for_rows(data, values, overrides or [], Recipe)
    if html is not None:
        write_page(recipe, numbers, html, pairs=shows_pairs(recipe, data))
    else:
        print_rows(recipe, numbers, pairs=shows_pairs(recipe, data), with_ids=ids)


def print_rows(recipe: "Recipe", numbers: range, *, pairs: bool | None, with_ids: bool) -> None:
    """Print rows as training sees them."""
    with loading():
        from glmtune.inspect.row import see_rows

    console = _console()
    for seen in see_rows(recipe, first=numbers.start, count=len(numbers), pairs=pairs):
        print_row(seen, console, with_ids=with_ids)


def write_page(recipe: "Recipe", numbers: range, html: Path, *, pairs: bool | None) -> None:
    """Write a page about all rows, with some of them in full."""
    with loading():
        from glmtune.prove.report.page import write_rows_page

    with make_console(stderr=True).status(translate("Reading all rows")):
        write_rows_page(recipe, html, first=numbers.start, count=len(numbers), pairs=pairs)
    typer.echo(html)


def print_texts(recipe: "PretrainRecipe", objective: Objective, numbers: Iterable[int]) -> None:
    """Print texts as pre-training sees them with one objective."""
    with loading():
        from glmtune.inspect.objective import see_infilling

    console = _console()
    for number in numbers:
        print_infilling(see_infilling(recipe, objective, number), console)


def _console() -> "Console":
    return make_console(highlight=False, soft_wrap=True)


def _entries(key: str, pairs: list[str] | None) -> dict[str, str]:
    """Read `--columns instruction=question` as the value of data.columns.instruction."""
    values = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            option = key.removeprefix("data.")
            raise RecipeError(f"--{option} {pair}: expected two names with = between them.")
        values[f"{key}.{name}"] = value
    return values


def print_infilling(seen: "SeenInfilling", console: "Console") -> None:
    """Print a line per token: what it predicts, its positions, and its row of the mask."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    example, size = seen.example, len(seen.tokens)
    num_learned = sum(map(bool, seen.targets))
    console.print(
        f"{seen.place}  {size} tokens: {example.prefix_length} in part A, "
        f"{size - example.prefix_length} in part B, {num_learned} learned",
        markup=False,
    )
    tokens, targets = ([printable(text) for text in texts] for texts in (seen.tokens, seen.targets))
    width = max(map(cell_len, [*tokens, *targets, "predicts"])) + 2
    is_drawn = size <= LONGEST_DRAWN
    heads = [set_cell_size(head, width) for head in ("token", "predicts")]
    legend = f"  attends to A {ATTENDS_A}  to B {ATTENDS_B}" if is_drawn else ""
    console.print(f"{'':>5}  {heads[0]}{heads[1]}position  block{legend}", style="dim")
    for index in range(size):
        is_in_a = index < example.prefix_length
        line = Text(f"{index:>4}{'A' if is_in_a else 'B'}  ", style="dim")
        line.append(set_cell_size(tokens[index], width), style="not dim")
        line.append(set_cell_size(targets[index], width), style=f"not dim {LEARNED}")
        line.append(
            f"{example.position_ids[index]:>8}  {example.block_position_ids[index]:>5}  ",
            style="not dim",
        )
        if is_drawn:
            in_a = seen.may_attend[index, : example.prefix_length]
            in_b = seen.may_attend[index, example.prefix_length :]
            line.append("".join(ATTENDS_A if may else MASKED for may in in_a), style="blue")
            line.append("".join(ATTENDS_B if may else MASKED for may in in_b), style="green")
        console.print(line)
    if not is_drawn:
        console.print(
            f"The attention mask is drawn for up to {LONGEST_DRAWN} tokens: give --max-length 64."
        )
    console.print()
