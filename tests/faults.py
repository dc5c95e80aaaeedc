"""Let every write of an action fail once, as SQLite's tests do.

    action   open a   sync a   rename a   open b   ...   done
                |        |        |         |
                fork     fork     fork      fork         each in a copy of the folder

The action runs once. Before each operation that changes the disk the process forks, and in the
fork that operation fails. The fork has a copy of the folder, so that the action itself continues as
if nothing had happened: a hundred points cost a hundred forks, not a hundred runs.

Operations are seen by Python's audit hooks, so those of libraries in Python count too, and by
`glmtune.files.before_writing`, which tells of fsync. What C++ and Rust write fails by a limit on
the size of files (`limited_to`).
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.files import before_writing


@dataclass(frozen=True)
class Fault:
    """What happens at an operation.

    Attributes:
        name: of the fault.
        strike: is called in the fork in place of the operation; where it returns, the operation
            takes place.
    """

    name: str
    strike: Callable[[Path], object]


def _refusal(code: int) -> Fault:
    def strike(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    return Fault(os.strerror(code), strike)


def _signals(number: signal.Signals, times: int = 1) -> Fault:
    def strike(path: Path) -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return Fault(f"{number.name} x {times}", strike)


ERRORS = tuple(map(_refusal, (errno.ENOSPC, errno.EIO, errno.EACCES)))
KILL = Fault("killed", lambda path: os._exit(0))
INTERRUPTS = (_signals(signal.SIGINT), _signals(signal.SIGINT, 2), _signals(signal.SIGTERM))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate")
_TOKEN = re.compile(r"\.[0-9a-f]{8}\.|-\d+-[0-9a-f]{8}")  # of a temporary name


@dataclass(frozen=True)
class Left:
    """What an action left when an operation failed.

    Attributes:
        point: the operation and the error.
        raised: the class of what the action raised, "" if it came to its end or was killed.
        message: of that.
        folder: the folder as it was left.
    """

    point: str
    raised: str
    message: str
    folder: Path


class _Watch:
    """What is called before an operation that changes the disk; None: nothing."""

    see: Callable[[str, Path], None] | None = None
    is_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.see is None or (event != "open" and event not in _CHANGES):
        return
    path = arguments[0]
    if event == "open" and not (int(arguments[2] or 0) & _WRITES):
        return
    if event == "os.rename":
        path = arguments[1]
    if isinstance(path, str | os.PathLike):
        _Watch.see(event.removeprefix("os."), Path(path))


@contextmanager
def _watching(root: Path, see: Callable[[str, Path], None]) -> Iterator[None]:
    """Call `see` before each operation below a folder."""
    if not _Watch.is_hooked:  # once: there is no way to remove a hook
        sys.addaudithook(_audit)
        _Watch.is_hooked = True

    def inside(operation: str, path: Path) -> None:
        if root in path.parents:
            watch, _Watch.see = _Watch.see, None  # what `see` does itself does not count
            try:
                see(operation, path)
            finally:
                _Watch.see = watch

    def synced(operation: str, path: Path) -> None:
        if operation == "sync":  # the others are seen by the hook
            inside(operation, path)

    token, _Watch.see = before_writing.set(synced), inside
    try:
        yield
    finally:
        _Watch.see = None
        before_writing.reset(token)


def fail_everywhere(
    root: Path, kept: Path, action: Callable[[], object], *turns: Sequence[Fault | None]
) -> list[Left]:
    """Let an action run once, and let something happen in forks at each operation.

    Args:
        root: the folder in which the action writes.
        kept: where what the forks leave is kept.
        action: it comes to its end.
        turns: each gives a point one fork; of several faults, the points take them in turn, and
            None is no fork.

    Returns:
        What was left, point by point.
    """
    left: list[Left] = []
    original, aside = os.getpid(), root.with_name(f"{root.name}.aside")
    answer = kept / "answer.json"
    kept.mkdir(parents=True, exist_ok=True)
    num_points = 0

    def fail(operation: str, path: Path) -> None:
        nonlocal num_points
        if os.getpid() != original:  # once in a fork
            return
        num_points += 1
        for faults in turns:
            fault = faults[num_points % len(faults)]
            if fault is not None:
                _fork(operation, path, fault)
            if os.getpid() != original:
                return

    def _fork(operation: str, path: Path, fault: Fault) -> None:
        name = _TOKEN.sub(".TOKEN.", str(path.relative_to(root)))
        root.rename(aside)  # open files of the original stay what they are
        shutil.copytree(aside, root, symlinks=True)
        answer.unlink(missing_ok=True)
        if (fork := os.fork()) == 0:
            _move_open_files(aside, root)
            fault.strike(path)
            return
        status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        raised, message = json.loads(answer.read_text()) if answer.exists() else ("", "")
        if fault in ERRORS and not answer.exists():
            raise AssertionError(f"{operation} {name}: the fork ended in {status}")
        folder = kept / f"{len(left):04}"
        root.rename(folder)
        aside.rename(root)
        left.append(Left(f"{operation} {name}: {fault.name}", raised, message, folder))

    try:
        with _watching(root, fail):
            action()
    except BaseException as error:
        if os.getpid() == original:
            raise
        answer.write_text(json.dumps([type(error).__name__, str(error)]))
    else:
        if os.getpid() != original:
            answer.write_text(json.dumps(["", ""]))
    finally:
        if os.getpid() != original:
            os._exit(0)
    return left


def _move_open_files(aside: Path, root: Path) -> None:
    """Let the open files of a fork be those of its own copy."""
    for number in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if not path.startswith(f"{aside}/") or not os.path.isfile(path):
            continue
        old = int(number)
        flags = fcntl.fcntl(old, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR | os.O_APPEND)
        new = os.open(str(root) + path.removeprefix(str(aside)), flags)
        os.lseek(new, os.lseek(old, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(new, old)
        os.close(new)


def state_of(folder: Path) -> str:
    """Digest names and contents of a folder; of temporary ones only that there are some."""
    entries = []
    for path in sorted(folder.rglob("*")):
        name = _TOKEN.sub(".TOKEN.", str(path.relative_to(folder)))
        if "TOKEN" in name:
            entries.append((name.partition("TOKEN")[0], ""))
            continue
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        entries.append((name, content))
    return hashlib.sha256(json.dumps(sorted(set(entries))).encode()).hexdigest()


def check_sentence(left: Left, *classes: type[Exception]) -> None:
    """An action that failed said so in one line, by an error for people."""
    if not left.raised or (left.raised == "KeyboardInterrupt" and "SIG" in left.point):
        return
    assert left.raised in [each.__name__ for each in classes], f"{left.point}: {left.raised}"
    assert "\n" not in left.message, left.point
    assert left.message[-1] == ".", left.message


@contextmanager
def limited_to(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size, whoever writes them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
