"""Write files and folders atomically, and compute their checksums.

A file is written under a temporary name and renamed when it is complete, so that a crash, a kill
or a full disk never leaves a partial file under its final name.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from glmtune.errors import CheckpointError, GlmtuneError, OutputError
from glmtune.units import readable

PARTIAL, OLD = ".partial", ".old"  # endings of temporary names

# Called with an operation ("open", "sync", "rename", ...) and its path before each one that changes
# the disk. A test gives one that raises an OSError, as a disk does that is full or broken.
before_writing: ContextVar[Callable[[str, Path], None]] = ContextVar(
    "before_writing", default=lambda operation, path: None
)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it.

    Raises:
        OutputError: the disk is full, or the folder cannot be written; the old file is kept.
    """
    partial = _temporary(path, PARTIAL)
    try:
        before_writing.get()("open", path)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            _sync(file, path)
        rename(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(explain_write_error(path, error)) from error


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file and flush it to disk, so that a crash cannot lose it.

    Raises:
        OutputError: the disk is full, or the file cannot be written.
    """
    try:
        before_writing.get()("open", path)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            _sync(file, path)
    except OSError as error:
        raise OutputError(explain_write_error(path, error)) from error


def _sync(file: IO[Any], path: Path) -> None:
    before_writing.get()("sync", path)
    if file.writable():
        file.flush()
    os.fsync(file.fileno())


def rename(path: Path, target: Path) -> None:
    """Rename a file or folder; a file of that name is replaced."""
    before_writing.get()("rename", target)
    path.replace(target)


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into; on success it replaces `folder`.

    Raises:
        OutputError: something could not be written; an existing `folder` is unchanged.
    """
    partial = _temporary(folder, PARTIAL)
    try:
        before_writing.get()("mkdir", folder)
        partial.mkdir(parents=True)
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    _sync(file, path)
        _swap(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (why := _write_error(error)) is not None:
            raise OutputError(explain_write_error(folder, why)) from error
        raise


def _write_error(error: BaseException) -> OSError | None:
    """Return the failed write that caused an exception, if that was the cause.

    safetensors and torch raise other types, which only mention it in their text.
    """
    if isinstance(error, OSError):
        return error
    text = str(error)
    if "No space left on device" in text or "inline_container" in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def _temporary(path: Path, ending: str) -> Path:
    """Return a name next to `path` that no other process uses, and no listing shows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{ending}")


def _swap(new: Path, folder: Path) -> None:
    """Rename a complete folder; the one that had the name before is deleted only after that."""
    old = _temporary(folder, OLD)
    if folder.exists():
        rename(folder, old)
    try:
        rename(new, folder)
    except OSError:
        if old.exists():
            old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a process that was killed left half written in a folder.

    A folder that it was about to replace gets its name back. Call this only where no other process
    can be writing.
    """
    for path in folder.glob(f".*{OLD}"):
        replaced = path.with_name(path.name[1:].removesuffix(OLD).rpartition(".")[0])
        if replaced.name and not replaced.exists():
            path.replace(replaced)
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".*{PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def explain_write_error(path: Path, error: OSError) -> str:
    """Return an error message: why `path` could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(nearest_folder(path)).free
        return (
            f"{path}: could not be written, the disk is full ({readable(free)} free). "
            "The previous files are unchanged. Free some space, then continue with --resume."
        )
    if isinstance(error, PermissionError):
        return f"{path}: could not be written, permission denied. Choose another output.dir."
    return f"{path}: could not be written: {error.strerror or error}."


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or its nearest parent that is an existing folder."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())


def read_json_object(path: Path, error: type[GlmtuneError] = CheckpointError) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file.
        error: raised if it holds something else.

    Raises:
        GlmtuneError: `error`, if the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as why:
        raise error(f"{path}: expected a JSON object, but {why}. Restore the file.") from None
    if not isinstance(content, dict):
        raise error(
            f"{path}: expected a JSON object, got a {type(content).__name__}. Restore the file."
        )
    return content


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; the file is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
