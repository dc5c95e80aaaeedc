"""The folder that the board was started in: what is read and written stays below it.

Paths come from a browser. Each is resolved with its links before it is used, so neither `..` nor a
link leads out.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError, OutputError
from glmtune.files import write_atomically

STATE = ".glmtune-board"  # in the folder: logs of what was started
MOST_ENTRIES = 2_000  # of a folder that are listed
MOST_FOLDERS = 20_000  # that are searched for runs
MOST_LEVELS = 6
SKIPPED = ("node_modules", "__pycache__", "site-packages")


class BoardError(GlmtuneError):
    """A request that the board refuses.

    Args:
        message: what was got, what was expected and what to do.
        status: of the response.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class StartFolder:
    """The folder that the board was started in.

    Attributes:
        root: without links.
    """

    root: Path

    def inside(self, text: str) -> Path:
        """Return the path that a request names.

        Raises:
            BoardError: it is not below the folder.
        """
        try:
            path = (self.root / text).resolve()
            path.exists()  # raises where a name is longer than the file system takes
            is_inside = path.is_relative_to(self.root)
        except (OSError, ValueError, RuntimeError):  # NUL, a surrogate, a loop of links
            raise BoardError(f"{text[:200]!r}: is not a path. Choose a file below here.") from None
        if not is_inside:
            raise BoardError(
                f"{text[:200]}: is not below {self.root}, where the board was started. Start it in "
                "a folder that holds the file.",
                403,
            )
        return path

    def name(self, path: Path) -> str:
        """Return a path relative to the folder, as commands that run in it take it."""
        try:
            return path.resolve().relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def word(self, path: Path) -> str:
        """Return the name of a path as an argument of a command, which is no option."""
        name = self.name(path)
        return f"./{name}" if name.startswith("-") else name

    def list(self, text: str) -> Mapping[str, Any]:
        """List a folder; hidden files and what leads out of the start folder are left out.

        Raises:
            BoardError: it is no folder, or is not below the start folder.
        """
        folder = self.inside(text)
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name.casefold()):
                    if entry.name.startswith(".") or not self._is_inside(entry):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        files.append({"name": entry.name, "bytes": entry.stat().st_size})
        except OSError as error:
            why = error.strerror or error
            raise BoardError(f"{text or '.'}: cannot be listed: {why}.", 404) from None
        return {
            "path": "" if folder == self.root else self.name(folder),
            "folders": folders[:MOST_ENTRIES],
            "files": files[:MOST_ENTRIES],
            "is_cut": max(len(folders), len(files)) > MOST_ENTRIES,
        }

    def _is_inside(self, entry: os.DirEntry[str]) -> bool:
        try:
            return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def write(self, text: str, content: str, *, overwrite: bool) -> Path:
        """Write a text file.

        Raises:
            BoardError: the path is not below the folder, is hidden, or exists already.
            OutputError: it cannot be written.
        """
        path = self.inside(text)
        self.check_new(path)
        if path.is_dir() or (path.exists() and not overwrite):
            raise BoardError(
                f"{text}: exists already, and is not overwritten unasked. Choose another name.", 409
            )
        if not path.parent.is_dir():
            raise OutputError(f"{text}: there is no folder {self.name(path.parent)!r}.")
        write_atomically(path, content)
        return path

    def check_new(self, path: Path) -> None:
        """Refuse a path that is the folder itself, or hidden.

        Raises:
            BoardError: it is one of these.
        """
        parts = path.relative_to(self.root).parts
        if not parts or any(part.startswith(".") for part in parts):
            raise BoardError(
                f"{self.name(path)}: expected a name below the folder that does not begin with a "
                "dot. Choose another one."
            )

    def walk(self) -> Iterator[tuple[Path, set[str]]]:
        """Yield folders with the names of their files, from the top; a reader may prune nothing."""
        for number, (folder, names, files) in enumerate(os.walk(self.root)):
            if number >= MOST_FOLDERS:
                return
            path = Path(folder)
            deep = len(path.relative_to(self.root).parts) >= MOST_LEVELS
            names[:] = [
                name
                for name in sorted(names)
                if not deep and not name.startswith((".", "checkpoint-")) and name not in SKIPPED
            ]
            if "pyvenv.cfg" in files:
                names.clear()
            yield path, set(files)
