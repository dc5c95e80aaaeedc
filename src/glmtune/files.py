"""Write files and folders atomically, read JSON within bounds, and compute checksums.

A file is written under a temporary name and renamed when it is complete, so that a crash, a kill
or a full disk never leaves a partial file under its final name.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from glmtune.errors import CheckpointError, GlmtuneError, OutputError, json_kind
from glmtune.units import readable

if TYPE_CHECKING:
    from pydantic import ValidationError

Checked = TypeVar("Checked")

MAX_JSON_BYTES = 16 * 2**20  # of a file that holds one object; a large index has 1 MB
MAX_JSON_DEPTH = 64  # levels of objects and lists; deeper ones exhaust the stack of libraries
SHOWN_CHARACTERS = 60  # of a value in a message

_OS_ERROR = re.compile(r"\(os error (\d{1,3})\)")  # as Rust ends the message of a system call

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
            sync(file, path)
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
            sync(file, path)
    except OSError as error:
        raise OutputError(explain_write_error(path, error)) from error


def sync(file: IO[Any], path: Path) -> None:
    """Flush an open file of that path to disk."""
    before_writing.get()("sync", path)
    if file.writable():
        file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush every file of a folder to disk, also those of other libraries."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                sync(file, path)


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
        share_files(partial)
        sync_folder(partial)
        _swap(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (why := write_error(error)) is not None:
            raise OutputError(explain_write_error(folder, why)) from error
        raise


def share_files(folder: Path) -> None:
    """Give the files of a new folder the permissions of any other new file.

    safetensors lets only their owner read what it writes, so that a server that another user runs
    could not open the weights.
    """
    allowed = folder.stat().st_mode & 0o666  # of a folder that was just made: what the umask leaves
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with suppress(OSError):  # some file systems have no permissions
                path.chmod(allowed)


def write_error(error: BaseException) -> OSError | None:
    """Return the failed write that caused an exception, if that was the cause.

    safetensors and torch raise other types, which only mention it in their text.
    """
    if isinstance(error, OSError):
        return error
    text = str(error)
    if match := _OS_ERROR.search(text):
        return OSError(int(match[1]), os.strerror(int(match[1])))
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


def remove_folder(folder: Path) -> None:
    """Delete a folder; under its own name it is whole until it is gone.

    Raises:
        OutputError: it cannot be renamed; it is unchanged.
    """
    partial = _temporary(folder, PARTIAL)
    try:
        rename(folder, partial)
    except OSError as error:
        raise OutputError(explain_write_error(folder, error)) from error
    shutil.rmtree(partial, ignore_errors=True)


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


def explain_write_error(
    path: Path,
    error: OSError,
    *,
    again: str = "continue with --resume",
    elsewhere: str = "output.dir",
) -> str:
    """Return an error message: why `path` could not be written, and what to do.

    Args:
        path: of the file or the folder.
        error: of the system.
        again: what to do when the cause is gone.
        elsewhere: the option or the key that names another place.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(nearest_folder(path)).free
        return (
            f"{path}: could not be written, the disk is full ({readable(free)} free). "
            f"The previous files are unchanged. Free some space, then {again}."
        )
    if isinstance(error, PermissionError):
        return f"{path}: could not be written, permission denied. Choose another {elsewhere}."
    return (
        f"{path}: could not be written: {error.strerror or error}. Check the disk, then {again}, "
        f"or choose another {elsewhere}."
    )


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or its nearest parent that is an existing folder."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())


def read_json_object(
    path: Path,
    error: type[GlmtuneError] = CheckpointError,
    *,
    remedy: str = "Restore the file.",
    max_bytes: int = MAX_JSON_BYTES,
) -> dict[str, Any]:
    """Read a file that holds one JSON object, of bounded size and depth.

    Args:
        path: the file.
        error: raised if it holds something else.
        remedy: what to do then, as a sentence.
        max_bytes: the largest size that is read.

    Raises:
        GlmtuneError: `error`, if the file cannot be read or is not a JSON object.
    """

    def refuse(found: object) -> NoReturn:
        raise error(f"{path}: expected a JSON object, {found}. {remedy}") from None

    try:
        if (size := path.stat().st_size) > max_bytes:
            refuse(f"but it has {size:,} bytes, and at most {max_bytes:,} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as why:
        refuse(f"but it cannot be read as JSON ({why})")
    except RecursionError:
        refuse("but it is nested too deeply")
    if not isinstance(content, dict):
        refuse(f"got {json_kind(content)}")
    if (problem := _find_unusable(content)) is not None:
        refuse(f"but {problem}")
    return content


def _find_unusable(content: Any) -> str | None:
    """Explain why a parsed JSON value cannot be used: its depth, or a text that is not Unicode."""
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += (*value, *value.values())
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not value.isascii():
                try:
                    value.encode("utf-8")
                except UnicodeEncodeError:
                    return f"{value[:40]!r} has half a surrogate pair, which is not valid Unicode"
        if not inner:
            return None
        level = inner
    return f"it is nested more than {MAX_JSON_DEPTH} levels deep"


def read_json_as(
    path: Path,
    kind: type[Checked],
    error: type[GlmtuneError] = CheckpointError,
    *,
    remedy: str = "Restore the file.",
) -> tuple[Checked, dict[str, Any]]:
    """Read a JSON object whose values have the types and bounds of a model.

    Args:
        path: the file.
        kind: a pydantic model, or a dataclass; what it does not name is kept if it allows that.
        error: raised if a value does not fit.
        remedy: what to do then, as a sentence.

    Returns:
        The model, and the content of the file.

    Raises:
        GlmtuneError: `error`, which names the key, its value and what was expected.
    """
    content = read_json_object(path, error, remedy=remedy)
    return checked_as(content, kind, f"{path}", error, remedy=remedy), content


def checked_as(
    content: Any,
    kind: type[Checked],
    place: str,
    error: type[GlmtuneError] = CheckpointError,
    *,
    remedy: str = "Restore the file.",
    is_json: bool = False,
) -> Checked:
    """Check parsed JSON against a pydantic model; `place` starts the message.

    Args:
        content, kind, error, remedy: as for `read_json_as`.
        place: the file, or what else the content came from.
        is_json: a list may stand for a tuple, and an object for a dataclass, in a strict model too.

    Raises:
        GlmtuneError: `error`, which names the key, its value and what was expected.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        if is_json:
            return TypeAdapter(kind).validate_json(json.dumps(content))
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as why:
        raise error(f"{place}: {_explain(why, content)}. {remedy}") from None


def _explain(why: "ValidationError", content: Any) -> str:
    """Name a key that does not fit, its value and what was expected."""
    # Of a union pydantic lists what each member says; the deepest says most.
    problem = max(why.errors(), key=lambda each: (len(each["loc"]), each["type"] == "value_error"))
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if problem["type"].startswith(("greater_than", "less_than")):
        expected = f"a number {expected}"
    if not problem["loc"] and problem["type"] == "value_error":
        return expected  # a check of several keys, which names them
    names: list[str] = []
    value = content
    for part in problem["loc"]:
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_index or (isinstance(value, dict) and part in value):
            value = value[part]
            names.append(str(part))
    where = ".".join(names) or "the content"
    if problem["type"] == "missing":
        missing = ".".join([*names, str(problem["loc"][-1])])
        return f"expected the key {missing}, which is not there"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where} is not a key of this file"
    if problem["loc"][-1:] == ("[key]",):
        of = f" of {'.'.join(names[:-1])}" if names[:-1] else ""
        return f"a key{of} is {_shown(names[-1])}, expected {expected}"
    return f"{where} is {_shown(value)}, expected {expected}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; the file is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
