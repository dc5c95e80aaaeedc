"""Start the board: bind the address, say where it is, answer until it is stopped."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from glmtune.cli.board.app import make_app
from glmtune.cli.board.folder import StartFolder
from glmtune.errors import OutputError
from glmtune.use.serve.access import Access, Address, bind, check_access, is_loopback, url_of


def run_board(
    folder: Path, *, address: Address, access: Access, announce: Callable[[str], None]
) -> None:
    """Serve the board until the process is stopped; what it has started runs on.

    Args:
        folder: the start folder; nothing is written outside of it.
        address: where to listen.
        access: who may use it.
        announce: is called with each line about the board, once it listens.

    Raises:
        OutputError: the address cannot be bound, the folder is none, or the system is Windows.
        RecipeError: the address needs a key.
    """
    import uvicorn

    if sys.platform == "win32":
        raise OutputError(
            "the board needs a system with sessions and signals, which let a run continue without "
            "it: Linux or macOS. On Windows, start it in WSL."
        )
    access = check_access(address, access)
    root = folder.resolve()
    if not root.is_dir():
        raise OutputError(f"{folder}: is not a folder. Give the one that holds rows and runs.")
    bound = bind(address)
    app = make_app(StartFolder(root), access)

    class Server(uvicorn.Server):
        """Ends what pages wait for, so that their connections can close."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.end_waiting()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=3,
        limit_concurrency=200,
    )
    announce(f"Board: {url_of(address.host, bound.getsockname()[1])}   folder: {root}")
    if not is_loopback(address.host) and access.api_key is None:
        announce(f"Everybody who can reach {address.host} may use it, and train here.")
    Server(config).run(sockets=[bound])
