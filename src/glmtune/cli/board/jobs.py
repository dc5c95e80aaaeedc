"""Commands that outlive the page and the board: training, evaluation, merging, export.

.glmtune-board/jobs/20261128-101500-train/
job.json     the command, its process, and the folder of its run
recipe.yaml  of a training that was started from the form
log.txt      what the command prints
exit         its exit code, once it has ended
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmtune.cli.board.folder import STATE, BoardError, StartFolder
from glmtune.cli.board.supervise import EXIT, LOG
from glmtune.errors import OutputError
from glmtune.files import explain_write_error, write_atomically

Kind = Literal["train", "evaluate", "merge", "export"]
State = Literal["running", "succeeded", "stopped", "failed", "lost"]
JOB = "job.json"
KEPT_JOBS = 200  # the oldest ended ones are deleted
TAIL_BYTES = 64 * 1024  # of a log that are shown
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
START_SECONDS = 1.0  # by which a process may seem to be older than its record


class JobRecord(BaseModel):
    """What is known of a job when it starts.

    Attributes:
        kind: which command.
        command: its arguments, as `glmtune` takes them.
        target: the folder of the run that it trains or uses, relative to the start folder.
        started: seconds since 1970.
        pid: of the process that waits for the command; also of its process group.
        process_started: seconds since 1970, so that a later process with this number is another.
        first_step: optimizer steps that were done before a training was resumed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind
    command: tuple[str, ...]
    target: str
    started: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    pid: Annotated[int, Field(gt=1, le=2**31)]
    process_started: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    first_step: Annotated[int, Field(ge=0, le=2**53)] = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A job in its folder.

    Attributes:
        folder: of the job.
        record: what was written when it started.
    """

    folder: Path
    record: JobRecord

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def exit_code(self) -> int | None:
        """Of the command; None while it runs, or if nobody could write it."""
        try:
            return int((self.folder / EXIT).read_text(encoding="utf-8")[:20])
        except (OSError, ValueError):
            return None

    @property
    def state(self) -> State:
        """Whether the command runs, or how it has ended."""
        code = self.exit_code
        if code is None:
            if _is_running(self.record):
                return "running"
            code = self.exit_code  # it may have been written just now
        if code is None:
            return "lost"  # killed with its supervisor, or the machine was switched off
        return "succeeded" if code == 0 else "stopped" if code in STOPPED else "failed"

    def log(self) -> str:
        """Return the end of the log; of a line that was written over, what was seen last."""
        try:
            with (self.folder / LOG).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - TAIL_BYTES, 0))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
        return "\n".join(lines[1:] if size > TAIL_BYTES else lines)

    def summary(self) -> dict[str, Any]:
        """Return what a page lists."""
        record = self.record
        return {
            "id": self.id,
            "kind": record.kind,
            "target": record.target,
            "command": shlex.join(["glmtune", *record.command]),
            "started": record.started,
            "state": self.state,
            "exit_code": self.exit_code,
        }


def _is_running(record: JobRecord) -> bool:
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.process_started) <= START_SECONDS
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class Jobs:
    """The jobs of a start folder.

    Args:
        start: the folder; commands run in it.
    """

    def __init__(self, start: StartFolder) -> None:
        self._start = start
        self._folder = start.root / STATE / "jobs"
        self._children: list[subprocess.Popen[bytes]] = []  # waited for, or they stay as zombies

    def all(self) -> list[Job]:
        """List the jobs, newest first; what is no job is left out."""
        self._children = [child for child in self._children if child.poll() is None]
        try:
            folders = sorted(self._folder.iterdir(), reverse=True)
        except OSError:
            return []
        return [job for folder in folders if (job := _read(folder)) is not None]

    def find(self, id: str) -> Job:
        """Return a job by its id.

        Raises:
            BoardError: there is none.
        """
        for job in self.all():
            if job.id == id:
                return job
        raise BoardError(f"there is no job {id[:100]!r}. Reload the page.", 404)

    def latest(self, kind: Kind, target: str) -> Job | None:
        """Return the newest job of a kind for a run."""
        wanted = kind, target
        found = (job for job in self.all() if (job.record.kind, job.record.target) == wanted)
        return next(found, None)

    def prepare(self, kind: Kind) -> Path:
        """Make the folder of a new job.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            ignore = self._start.root / STATE / ".gitignore"
            if not ignore.exists():
                write_atomically(ignore, "*\n")
            self._remove_old()
            stamp = time.strftime("%Y%m%d-%H%M%S")
            for number in range(1, 1000):
                folder = self._folder / f"{stamp}-{number:03}-{kind}"
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                return folder
        except OSError as error:
            raise OutputError(explain_write_error(self._folder, error)) from error
        raise OutputError(f"{self._folder}: a thousand jobs in one second. Wait a moment.")

    def begin(
        self, kind: Kind, folder: Path, command: Sequence[str], target: str, first_step: int = 0
    ) -> Job:
        """Start a command in a session of its own.

        Args:
            kind: of the job.
            folder: from `prepare`.
            command: arguments of `glmtune`.
            target: the run that it trains or uses.
            first_step: of a training that is resumed.

        Raises:
            OutputError: the process cannot be started, or the folder cannot be written.
        """
        environment = dict(os.environ)
        environment.pop("GLMTUNE_API_KEY", None)  # of the board
        environment["COLUMNS"] = "120"  # of tables in the log
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "glmtune.cli.board.supervise", str(folder), *command],
                cwd=self._start.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise OutputError(f"the command cannot be started: {error.strerror}.") from error
        self._children.append(child)
        try:
            began = psutil.Process(child.pid).create_time()
        except psutil.Error:  # it ended already, and its exit code says why
            began = time.time()
        record = JobRecord(
            kind=kind,
            command=tuple(command),
            target=target,
            started=time.time(),
            pid=child.pid,
            process_started=began,
            first_step=first_step,
        )
        write_atomically(folder / JOB, record.model_dump_json(indent=1) + "\n")
        return Job(folder, record)

    def stop(self, job: Job, *, at_once: bool = False) -> None:
        """Interrupt a command as Ctrl-C does; a training then saves a checkpoint.

        Args:
            job: to stop.
            at_once: kill it, so that what it does since the last checkpoint is lost.

        Raises:
            BoardError: it does not run.
        """
        if job.state != "running":
            raise BoardError("it does not run any more. Reload the page.", 409)
        try:
            if at_once:
                for process in psutil.Process(job.record.pid).children(recursive=True):
                    process.kill()  # not its supervisor, which writes the exit code
            else:
                os.killpg(job.record.pid, signal.SIGINT)
        except (ProcessLookupError, PermissionError, psutil.Error) as error:
            raise BoardError(f"process {job.record.pid} cannot be stopped: {error}.", 409) from None

    def _remove_old(self) -> None:
        ended = [job for job in self.all() if job.state != "running"]
        for job in ended[KEPT_JOBS:]:
            for name in (JOB, LOG, EXIT, "recipe.yaml"):
                (job.folder / name).unlink(missing_ok=True)
            job.folder.rmdir()


def _read(folder: Path) -> Job | None:
    try:
        text = (folder / JOB).read_text(encoding="utf-8")
        return Job(folder, JobRecord.model_validate(json.loads(text)))
    except (OSError, ValueError, RecursionError, ValidationError):
        return None
