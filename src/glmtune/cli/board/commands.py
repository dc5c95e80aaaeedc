"""Run a command of `glmtune` for a page that waits for its output, and end it if the page leaves.

Linting a file and planning a run take seconds and hundreds of megabytes. They are the commands
themselves, in a process that is gone afterwards; a newer request of the same kind ends the older.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.cli.board.folder import BoardError

POLL_SECONDS = 0.2  # between looks at whether the page is still there
MOST_OUTPUT = 256 * 2**20  # bytes; lint may have many findings
Gone = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Output:
    """What a command printed.

    Attributes:
        code: its exit code.
        text: of standard output.
        log: of standard error.
    """

    code: int
    text: str
    log: str

    def json(self) -> Any:
        """Parse standard output.

        Raises:
            BoardError: the command failed, with its own message.
        """
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            raise BoardError(self.problem) from None

    @property
    def problem(self) -> str:
        """The message of a command that failed."""
        _, mark, message = self.log.rpartition("error: ")
        return (message if mark else self.log).strip()[-4000:] or f"it ended with {self.code}."


class Slot:
    """Runs one command at a time: the newest that was asked for.

    Args:
        folder: where commands run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: asyncio.subprocess.Process | None = None
        self._turn = 0

    async def run(self, arguments: Sequence[str], gone: Gone) -> Output:
        """Run a command and return its output.

        Args:
            arguments: of `glmtune`.
            gone: says whether the page has left.

        Raises:
            BoardError: the page left, or asked for a newer one.
        """
        self.end()
        turn = self._turn
        environment = {k: v for k, v in os.environ.items() if k != "GLMTUNE_API_KEY"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "glmtune", "--quiet", *arguments,
            cwd=self._folder, env=environment, limit=MOST_OUTPUT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        if turn != self._turn:  # a newer one began while this process was made
            _kill(process)
        else:
            self._running = process
        ended = asyncio.ensure_future(process.communicate())
        try:
            while not (await asyncio.wait({ended}, timeout=POLL_SECONDS))[0]:
                if await gone():
                    _kill(process)
            output, log = await ended
        finally:
            _kill(process)
        if turn != self._turn:
            raise BoardError("a newer request has taken its place, or the board ends.", 409)
        text = output[:MOST_OUTPUT].decode("utf-8", errors="replace")
        return Output(process.returncode or 0, text, log.decode("utf-8", errors="replace"))

    def end(self) -> None:
        """End the command that runs."""
        self._turn += 1
        if self._running is not None:
            _kill(self._running)
            self._running = None


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
