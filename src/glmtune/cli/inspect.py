"""`glmtune inspect`."""

from typing import Annotated

import typer


def inspect(
    data: Annotated[str, typer.Argument(help="Rows, or a recipe.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", help="Folder with a tokenizer.")] = None,
    row: Annotated[int, typer.Option(min=1, help="Which row, counted from 1.")] = 1,
) -> None:
    """Show a row as the tokens that training sees.

    Example: glmtune inspect rows.json --model ./chatglm3-6b --row 3
    """
    raise NotImplementedError
