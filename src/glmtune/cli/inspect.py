"""`glmtune inspect`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glmtune.errors import RecipeError
from glmtune.gc_pause import loading

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from glmtune.inspect.objective import SeenInfilling
    from glmtune.inspect.row import SeenRow
    from glmtune.recipe.recipe import AnyRecipe, Recipe
    from glmtune.template.pieces import Piece

LEARNED = "bold green"
BRACKETS = ("⟦", "⟧")  # around what is learned where there is no colour
BORDER = "│"  # between pieces
Objective = Literal[
    "token", "sentence", "document", "causal", "masked-lm", "prefix-lm", "causal-lm"
]
LONGEST_DRAWN = 96  # tokens whose attention is drawn
SEES_A, SEES_B, SEES_NOT = "█", "▒", "·"
VISIBLE = {"\n": "⏎\n", "\t": "⇥", "\r": "␍"}


def inspect(
    data: Annotated[
        str, typer.Argument(help="Rows as in data.train, or a recipe.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Further values of the recipe."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Folder, hub id or nano; its tokenizer is enough.")
    ] = None,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row, counted from 1.")] = 1,
    count: Annotated[int, typer.Option("-n", min=1, help="How many rows from there.")] = 1,
    layout: Annotated[
        Literal["official", "tutorial", "chatglm2", "plain"] | None,
        typer.Option(help="How ids are laid out."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="In tokens.")] = None,
    overlong: Annotated[
        Literal["drop", "truncate_prompt", "tutorial"] | None,
        typer.Option(help="What becomes of longer rows."),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Of the rows; by default found by the columns.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Which column is what.")
    ] = None,
    roles: Annotated[
        list[str] | None, typer.Option(metavar="THEIRS=OURS", help="Which role is what.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="A line per piece, with its ids.")] = False,
    objective: Annotated[
        Objective | None,
        typer.Option(help="Show a text as pre-training sees it, with this objective alone."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page: these rows, the worst rows, totals."),
    ] = None,
) -> None:
    """Show rows as the tokens that training sees, and which of them it learns.

    Example: glmtune inspect rows.json --model ./chatglm3-6b --row 3

    Example: glmtune inspect text.txt --model ./chatglm3-6b --objective masked-lm
    """
    values = {
        "model.name_or_path": model,
        "data.layout": layout,
        "data.max_length": max_length,
        "data.overlong": overlong,
        "data.format": format,
        **_pairs("data.columns", columns),
        **_pairs("data.roles", roles),
    }
    from rich.console import Console

    from glmtune.recipe.recipe import PretrainRecipe, Recipe

    console = Console(highlight=False, soft_wrap=True)
    if objective is not None:
        if html is not None:
            raise RecipeError("--html shows rows for fine-tuning; leave it out with --objective.")
        texts = recipe_for(data, values, overrides or [], PretrainRecipe)

        with loading():
            from glmtune.inspect.objective import see_infilling

        for number in range(row, row + count):
            print_infilling(see_infilling(texts, objective, number), console)
        return
    recipe = recipe_for(data, values, overrides or [], Recipe)
    if html is not None:
        with loading():
            from glmtune.prove.report.page import write_rows_page

        with Console(stderr=True).status("Looking at all rows"):
            write_rows_page(recipe, html, first=row, count=count, pairs=sees_pairs(recipe, data))
        typer.echo(html)
        return

    with loading():
        from glmtune.inspect.row import see_rows

    for seen in see_rows(recipe, first=row, count=count, pairs=sees_pairs(recipe, data)):
        print_row(seen, console, with_ids=ids)


def _pairs(key: str, pairs: list[str] | None) -> dict[str, str]:
    """Read `--columns instruction=question` as the value of data.columns.instruction."""
    values = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            option = key.removeprefix("data.")
            raise RecipeError(f"--{option} {pair}: expected a pair with = between.")
        values[f"{key}.{name}"] = value
    return values


def recipe_for(
    data: str,
    values: "dict[str, str | int | None]",
    overrides: list[str],
    kind: "type[AnyRecipe]",
) -> "AnyRecipe":
    """Make the recipe that would train on these rows or texts.

    Raises:
        RecipeError: the recipe cannot be read, a value does not fit, or there is no model.
    """
    from glmtune.recipe.reading import build_recipe, load_recipe

    given = [
        # JSON is YAML, and quotes what YAML would read as something else
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]
    if data.endswith((".yaml", ".yml")):
        return load_recipe(data, [*given, *overrides], kind=kind)
    names_model = ("model.name_or_path=", "name_or_path=", "model_name_or_path=")
    if not any(each.startswith(names_model) for each in [*given, *overrides]):
        raise RecipeError(
            "--model is missing: rows become tokens by a model's tokenizer. "
            f"Try: glmtune inspect {data} --model ./chatglm3-6b"
        )
    tree = {"data": {"train": data}, "output": {"dir": os.devnull}}  # nothing is written
    return build_recipe(tree, [*given, *overrides], source=data, kind=kind)


def sees_pairs(recipe: "Recipe", data: str) -> bool | None:
    """Whether both answers of a pair are looked at: as the recipe says, or wherever there are two.

    Args:
        recipe: read from a file, or made for some rows.
        data: that file, or those rows.
    """
    is_recipe = data.endswith((".yaml", ".yml"))
    return recipe.preference.stage == "dpo" or (False if is_recipe else None)


def print_row(seen: "SeenRow", console: "Console", *, with_ids: bool) -> None:
    """Print what there is to know of a row, then its tokens and what they decode to."""
    described = ", ".join(f"{key} {value}" for key, value in seen.template.items())
    has_colour = console.color_system is not None and not console.no_color
    console.print(f"{seen.place}  (format {seen.format}; template {described})", markup=False)
    learned = "green" if has_colour else "".join(BRACKETS)
    console.print(f"{seen.num_tokens} tokens, {seen.num_learned} learned ({learned})")
    if seen.fate:
        console.print(f"note: {seen.fate}", style="yellow")
    console.print()
    if with_ids:
        for line in piece_lines(seen.pieces, has_colour=has_colour):
            console.print(line)
    else:
        console.print(flowing(seen.pieces, has_colour=has_colour))
    for label, text in (("input", seen.input_text), ("labels", seen.label_text)):
        console.print()
        console.print(f"{label}:", style="bold")
        console.print(printable(text, keep="\n"), markup=False)
    console.print()


def print_infilling(seen: "SeenInfilling", console: "Console") -> None:
    """Print a line per token: what it is, what it predicts, where it stands, whom it sees."""
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
    sees = f"  sees A {SEES_A}  sees B {SEES_B}" if is_drawn else ""
    console.print(f"{'':>5}  {heads[0]}{heads[1]}position  block{sees}", style="dim")
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
            sees_a = seen.may_attend[index, : example.prefix_length]
            sees_b = seen.may_attend[index, example.prefix_length :]
            line.append("".join(SEES_A if sees else SEES_NOT for sees in sees_a), style="blue")
            line.append("".join(SEES_B if sees else SEES_NOT for sees in sees_b), style="green")
        console.print(line)
    if not is_drawn:
        console.print(f"Who sees whom is drawn up to {LONGEST_DRAWN} tokens: give --max-length 64.")
    console.print()


def flowing(pieces: "tuple[Piece, ...]", *, has_colour: bool) -> "Text":
    """Write the pieces one after the other, as text."""
    from rich.text import Text

    result = Text()
    is_inside = False
    for index, piece in enumerate(pieces):
        if piece.is_learned != is_inside and not has_colour:
            result.append(BRACKETS[0] if piece.is_learned else BRACKETS[1])
        elif index:
            result.append(BORDER, style="dim")
        is_inside = piece.is_learned
        result.append(printable(piece.text), style=_style(piece))
    if is_inside and not has_colour:
        result.append(BRACKETS[1])
    return result


def piece_lines(pieces: "tuple[Piece, ...]", *, has_colour: bool) -> "list[Text]":
    """Write a line per piece: position, ids, text."""
    from rich.text import Text

    lines, position = [], 0
    for piece in pieces:
        ids = " ".join(map(str, piece.ids))
        text = printable(piece.text).replace("⏎\n", "⏎").replace(" ", "▁")
        if piece.is_learned and not has_colour:
            text = text.join(BRACKETS)
        line = Text(f"{position:>6}  {ids:<24}  ", style="dim")
        line.append(text, style=_style(piece))
        lines.append(line)
        position += len(piece.ids)
    return lines


def _style(piece: "Piece") -> str:
    colour = LEARNED if piece.is_learned else "not bold"
    return f"{colour} reverse" if piece.is_special else colour


def printable(text: str, keep: str = "") -> str:
    """Make white space visible, and harmless what would command the terminal."""
    return "".join(
        char
        if char in keep
        else VISIBLE.get(char) or (char if _is_safe(char) else repr(char)[1:-1])
        for char in text
    )


def _is_safe(char: str) -> bool:
    return char.isprintable() or char == "\u3000"  # the wide space of Chinese text
