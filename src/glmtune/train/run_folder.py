"""What a run keeps in its output folder, and whether a new run may use that folder.

Nothing heavy is imported, so a command refuses a folder that holds a run before PyTorch loads.
"""

import errno
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from glmtune.errors import OutputError
from glmtune.files import explain_write_error
from glmtune.methods.adapter_folder import CARD
from glmtune.prove.metrics import METRICS
from glmtune.recipe.recipe import RECIPE
from glmtune.use.evaluate.names import SCORES_FILES

RUN_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "prompt_encoder.safetensors",  # methods/virtual_tokens.py
    CARD,
    "README.md",
    RECIPE,
    METRICS,
    "loss.svg",
    "loss.png",  # of earlier versions
    "report.html",
    "report.json",
    *(
        name.replace(".json", ending)
        for name in SCORES_FILES
        for ending in (".json", ".answers.jsonl", ".base-answers.jsonl", ".judge.jsonl")
    ),
)
# Of a complete model. They may be a user's own, unless our card is there too.
MODEL_FILES = ("config.json", "generation_config.json", "pytorch_model.bin")


LOCK = ".lock"  # held by a run while it writes into the folder
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # by another process; otherwise: no locks here


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep other runs out of an existing output folder until the block or this process ends.

    The operating system releases the lock of a process that was killed. On a file system without
    locks nothing is locked.

    Raises:
        OutputError: another run is writing into the folder, or it cannot be written.
    """
    path = output / LOCK
    try:
        file = _take_lock(path)
    except OSError as error:
        raise OutputError(explain_write_error(path, error)) from error
    try:
        yield
    finally:
        with suppress(OSError):  # before the lock is released, or it might be that of another run
            path.unlink()
        file.close()


def _take_lock(path: Path) -> IO[str]:
    """Open a lock file and lock it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in HELD:
                return file
            holder = _read_holder(file)
            file.close()
            raise OutputError(
                f"{path.parent}: another run is writing into this folder{holder}. Wait for its "
                "end, or choose another output.dir."
            ) from None
        if _is_at(file, path):
            break
        file.close()  # its owner deleted it between our two calls
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%X')}")
        file.flush()
    except OSError:
        with suppress(OSError):  # it tries to write again, and closes the file even so
            file.close()
        raise
    return file


def _read_holder(file: IO[str]) -> str:
    with suppress(OSError):  # Windows does not let others read what is locked
        file.seek(0)
        if holder := file.read(200):
            return f" ({holder})"
    return ""


def process_of(output: Path) -> int | None:
    """Return the number of the process on this machine that writes into an output folder.

    The lock is read and not tried: a run that begins at that moment would find it held.

    Returns:
        None if there is none, or if it runs on another machine.
    """
    path = output / LOCK
    try:
        match = re.match(r"process (\d{1,9}) on (.{1,255}), since", path.read_text("utf-8")[:400])
        written = path.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return None
    if match is None or match[2] != socket.gethostname():
        return None
    import psutil

    try:
        began = psutil.Process(int(match[1])).create_time()
    except (psutil.Error, OverflowError):
        return None  # it was killed, and left the file
    return int(match[1]) if began <= written + 1 else None  # or a later one has its number


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> None:
    """Lock an open file against other processes, without waiting.

    Raises:
        OSError: another process has locked it, or the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_folder(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder whose contents a run would replace.

    Raises:
        OutputError: it is a file, or holds a run or a model and neither `resume` nor `overwrite`
            was asked for.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file, expected a folder. Choose another output.dir.")
    held = [path.name for path in run_files(output)]
    held += [path.name for path in checkpoints(output)] if output.is_dir() else []
    if held and not (resume or overwrite):
        raise OutputError(
            f"{output}: already holds a run ({', '.join(held[:3])}). Continue it with --resume, "
            "choose another output.dir, or replace it with output.overwrite=true. "
            "(In Python: resume=True, dir=..., or overwrite=True.)"
        )
    if (output / "config.json").exists() and not (output / CARD).exists():
        raise OutputError(
            f"{output}: holds a model that glmtune did not write. Choose another output.dir."
        )
    if resume and overwrite:
        raise OutputError(
            "--resume and output.overwrite=true contradict each other: one keeps the run, the "
            "other replaces it. Give one of them."
        )


def run_files(output: Path) -> list[Path]:
    """List the existing files of a run; those of a model only with our card."""
    found = [output / name for name in RUN_FILES]
    if (output / CARD).is_file():
        found += [output / name for name in MODEL_FILES]
        found += weights(output)
    return [path for path in found if path.exists()]


def weights(output: Path) -> list[Path]:
    """List the weights of a complete model, and their index."""
    return [*output.glob("model*.safetensors"), *output.glob("model.safetensors.index.json")]


def checkpoints(output: Path) -> list[Path]:
    """List the checkpoints in an output folder, oldest first."""
    named = [
        (int(match[1]), path)
        for path in output.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(named)]
