"""Write a new folder that either is complete and proven under its name, or is not there.

    DIR.partial   while it is written; removed at an error, a full disk or Ctrl-C
    DIR           complete, and every proof has passed
    DIR.failed    complete, but a proof has failed: kept to look into, and named for what it is

`export.json` is the first file and the last: while it says "unfinished", a killed command left
the folder, and the next one with the same target removes it.
"""

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from glmtune.errors import OutputError
from glmtune.files import nearest_folder, rename, share_files, sync_folder, write_error
from glmtune.units import readable

REPORT = "export.json"
BEGINNING_SECONDS = 10  # in which another export may be about to write its first file
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = "{target}: could not be written, permission denied. Give another name with -o."
_IN_USE = (
    "{partial}: another export is writing it at this moment. Wait for its end, or give another "
    "name with -o."
)


class ProofError(OutputError):
    """What was written does not answer as what it was made from."""


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that gets the target's name on success.

    Raises:
        OutputError: the target exists, or something could not be written.
        ProofError: raised inside; the folder is kept under another name.
    """
    refuse_existing(target)
    partial = _partial(target)
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise OutputError(_IN_USE.format(partial=partial)) from None
    except OSError as error:
        raise OutputError(_explain(error).format(target=target)) from error
    try:
        write_report(partial, {"status": "unfinished", "process": _this_process()})
        yield partial
        share_files(partial)
        sync_folder(partial)
        rename(partial, target)
    except ProofError as error:
        failed = _free_name(target.with_name(f"{target.name}.failed"))
        partial.replace(failed)
        raise ProofError(f"{error} What was written is in {failed}, to look into.") from None
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (why := _write_error(error)) is not None:
            raise OutputError(why.format(target=target)) from error
        raise


def _partial(target: Path) -> Path:
    return target.parent / f"{target.name}.partial"


def refuse_existing(target: Path) -> None:
    """Refuse a target that exists, and remove what a killed command left.

    Raises:
        OutputError: names what is in the way.
    """
    if os.path.lexists(target):
        raise OutputError(
            f"{target}: already exists, and is never written over. Give another name with -o."
        )
    partial = _partial(target)
    if not os.path.lexists(partial):  # False too for a name that is too long
        return
    if _is_barely_begun(partial):
        shutil.rmtree(partial, ignore_errors=True)
        return
    report = _unfinished(partial)
    if report is not None and _is_running(report.get("process")):
        raise OutputError(_IN_USE.format(partial=partial))
    if report is not None:
        try:
            shutil.rmtree(partial)
        except OSError as error:
            raise OutputError(_explain(error).format(target=target)) from error
        return
    raise OutputError(
        f"{partial}: is in the way, and no killed export left it. Move it, or give another name "
        "with -o."
    )


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write what was made, from what, and the proofs."""
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    (folder / REPORT).write_text(text, encoding="utf-8")


def _unfinished(folder: Path) -> dict[str, Any] | None:
    """Return the report of an export that did not end, None if it is something else."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("status") == "unfinished" else None


def _is_barely_begun(folder: Path) -> bool:
    """Whether a command was killed before it wrote a word: no file, or its first one empty."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    try:
        held = [(path.name, path.stat().st_size) for path in folder.iterdir()]
        is_old = time.time() - folder.stat().st_mtime > BEGINNING_SECONDS
    except OSError:
        return False
    return is_old and held in ([], [(REPORT, 0)])


def _this_process() -> list[Any]:
    """Name this process so that no later one of its number is taken for it."""
    return [socket.gethostname(), os.getpid(), psutil.Process().create_time()]


def _is_running(process: Any) -> bool:
    """Whether the process that was recorded is alive on this machine."""
    if not isinstance(process, list) or process[:1] != [socket.gethostname()]:
        return False
    try:
        return bool(process[2] == psutil.Process(process[1]).create_time())
    except (psutil.Error, IndexError, TypeError, ValueError):
        return False


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{number}") for number in range(2, 10_000))
    return path if not path.exists() else next(each for each in numbered if not each.exists())


def _write_error(error: BaseException) -> str | None:
    """Explain a failed write; None if an exception has another cause."""
    if isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # of a file; what it advises is for runs, which can be resumed
    if (why := write_error(error)) is None:
        return None
    if why.errno in DENIED:
        return _DENIED
    if why.errno in FULL:
        return (
            "{target}: the disk is full; what was written of it is removed, and nothing else has "
            "changed. Free some space, or give a folder on another disk with -o."
        )
    return (
        f"{{target}}: could not be completed: {_literal(error)}. What was written is removed. "
        "Check the disk, or give a folder on another one with -o."
    )


def _explain(error: OSError) -> str:
    """Explain why a folder cannot be made, whatever the system calls it."""
    if error.errno in (*DENIED, *FULL) and (why := _write_error(error)) is not None:
        return why
    return f"{{target}}: no folder can be made there: {error.strerror}. Give another name with -o."


def _literal(error: BaseException) -> str:
    return str(error).replace("{", "{{").replace("}", "}}")


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk on which a folder is, or will be."""
    return shutil.disk_usage(nearest_folder(folder)).free


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuse to write more than the disk has free.

    Raises:
        OutputError: names both sizes.
    """
    if (free := free_bytes(folder)) < num_bytes:
        raise OutputError(
            f"{folder}: {readable(num_bytes)} would be written, and the disk has {readable(free)} "
            "free. Free some space, or give a folder on another disk with -o."
        )
