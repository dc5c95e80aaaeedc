"""`glmtune board`: prepare, train, watch and use runs in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.printing import echo


def board(
    folder: Annotated[
        Path, typer.Argument(help="Folder with rows and runs; nothing is written outside of it.")
    ] = Path(),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GLMTUNE_API_KEY",
            show_envvar=True,
            help="Key that the page asks for; needed if other machines can reach the address.",
        ),
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Let everybody in who can reach the address.")
    ] = False,
) -> None:
    """Look at rows, write a recipe, train it and use the result, in a browser.

    A run that was started continues when the page or the board is closed.

    Example: glmtune board
    """
    from glmtune.use.serve.access import Access, Address, require_packages

    require_packages()
    from glmtune.cli.board.run import run_board

    run_board(
        folder,
        address=Address(host, port, no_key),
        access=Access(api_key),
        announce=echo,
    )
