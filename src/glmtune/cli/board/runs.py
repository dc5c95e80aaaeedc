"""Runs below the start folder, read from their files: those of the board and all others.

recipe.yaml, metrics.jsonl    what it is, and its curves, also while it runs
.lock                         whether a process writes into it
report.json                   proofs and figures, once it has ended
a job of the board            its log, and what stops it
"""

import functools
import itertools
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from glmtune.cli.board.folder import BoardError, StartFolder
from glmtune.cli.board.jobs import Job, Jobs
from glmtune.errors import OutputError
from glmtune.messages import in_chinese
from glmtune.methods.adapter_folder import CARD
from glmtune.prove.metrics import METRICS, read_metrics
from glmtune.prove.proof import PROOFS, Proof
from glmtune.prove.report.facts import FACTS
from glmtune.prove.report.record import RunRecord, read_record
from glmtune.prove.report.summary import key_figures, title_of
from glmtune.recipe.recipe import RECIPE
from glmtune.train.run_folder import LOCK, process_of

State = Literal["running", "finished", "stopped", "failed"]
MOST_RUNS = 500  # that are listed
LOOK_SECONDS = 5.0  # between two searches of all folders, which may be many
MOST_LINES = 5_000  # of metrics that are sent at once
# A command prints in the language of its user.
_PROOF = re.compile(
    r"(?:warning: |警告：)?(?:proof: |证明：)(.{1,200}?)(?:: |：)"
    r"(passed|failed|not run|通过|未通过|未运行)(?: \((.*)\)|（(.*)）)?"
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step, num_steps: optimizer steps that are done, and all; None if not known.
        seconds_left: an estimate from the steps since the process began.
    """

    step: int
    num_steps: int | None
    seconds_left: float | None


class Runs:
    """Finds and reads runs.

    Args:
        start: the start folder.
        jobs: of the board.
    """

    def __init__(self, start: StartFolder, jobs: Jobs) -> None:
        self._start, self._jobs = start, jobs
        self._found: tuple[Path, ...] = ()
        self._looked = -math.inf  # when, by a clock that only goes forward
        self._known: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}

    def all(self) -> list[dict[str, Any]]:
        """List the runs, newest first."""
        jobs = _latest(self._jobs.all())
        found = {self._start.name(path): path for path in self._folders()}
        listed = [self._listed(name, path, jobs.get(name)) for name, path in found.items()]
        listed += [_without_folder(name, job) for name, job in jobs.items() if name not in found]
        return sorted(listed, key=lambda run: run["changed"], reverse=True)[:MOST_RUNS]

    def folder(self, text: str) -> Path:
        """Return the folder of a run.

        Raises:
            BoardError: there is none.
        """
        path = self._start.inside(text)
        if not (path / RECIPE).is_file():
            raise BoardError(f"{text[:200]}: there is no run in it. Reload the page.", 404)
        return path

    def read(self, text: str, have: str) -> dict[str, Any]:
        """Read everything that a page shows of a run.

        Args:
            text: its folder, relative to the start folder.
            have: the mark of the metrics that the page has, from an earlier answer.

        Raises:
            BoardError: there is no such run.
        """
        path = self._start.inside(text)
        name = self._start.name(path)
        job = _latest(self._jobs.all()).get(name)
        log = "" if job is None else job.log()
        if not (path / RECIPE).is_file():
            if job is None:
                raise BoardError(f"{text[:200]}: there is no run in it. Reload the page.", 404)
            return _without_folder(name, job) | {"log": log, "lines": [], "proofs": [], "mark": ""}
        record = read_record(path, damaged_too=True)
        state = self._state(path, record, job)
        lines, mark = _news(path, record.lines, have)
        started_again = state == "running" or (job is not None and job.state == "failed")
        proofs = list(_logged_proofs(log)) if started_again else list(record.facts.proofs)
        return self._listed(name, path, job) | {
            "log": log,
            "job": None if job is None else job.summary(),
            "lines": lines,
            "mark": mark,
            "proofs": [asdict(proof) for proof in _in_order(proofs, is_over=state == "finished")],
            "progress": asdict(_progress(path, record, job, is_running=state == "running")),
            "recipe": record.recipe_text,
            "is_pretraining": record.is_pretraining,
        }

    def _folders(self) -> Iterator[Path]:
        """Yield the folders of runs, of which those of others are looked for now and then."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            found = (path for path, names in self._start.walk() if _holds_run(names))
            self._found = tuple(itertools.islice(found, MOST_RUNS))
            self._looked = time.monotonic()
        started = (self._start.root / job.record.target for job in self._jobs.all())
        for path in dict.fromkeys((*self._found, *started)):
            if (path / RECIPE).is_file():
                yield path

    def _listed(self, name: str, path: Path, job: Job | None) -> dict[str, Any]:
        """Summarize a run; its files are read again only where they have changed."""
        stamp = tuple(_stamp(path / file) for file in (RECIPE, METRICS, FACTS))
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                known = stamp, _summary(read_record(path, damaged_too=True))
            except OutputError as error:
                known = stamp, {"title": name, "problem": str(error)}
            self._known[path] = known
        record = known[1].get("record")
        return {key: value for key, value in known[1].items() if key != "record"} | {
            "path": name,
            "changed": max(stamp) / 1e9,
            "state": self._state(path, record, job),
            "process": process_of(path),
            "has_report": (path / "report.html").is_file(),
            "is_usable": _is_usable(path),
            "job": None if job is None else job.summary(),
        }

    def _state(self, path: Path, record: RunRecord | None, job: Job | None) -> State:
        if process_of(path) is not None or (job is not None and job.state == "running"):
            return "running"
        facts = None if record is None else record.facts
        if job is not None and job.state == "failed":
            return "failed"
        if facts is not None and any(proof.verdict == "failed" for proof in facts.proofs):
            return "failed"
        return "finished" if facts is not None and facts.is_finished else "stopped"


def _holds_run(names: Collection[str]) -> bool:
    return RECIPE in names and any(each in names for each in (METRICS, FACTS, LOCK))


def _latest(jobs: Sequence[Job]) -> Mapping[str, Job]:
    """Return the newest training of each run."""
    return {job.record.target: job for job in reversed(jobs) if job.record.kind == "train"}


def _without_folder(name: str, job: Job) -> dict[str, Any]:
    """Describe a training that has written nothing yet, or was refused before it did."""
    running = job.state == "running"
    return {
        "title": name,
        "path": name,
        "changed": job.record.started,
        "state": "running" if running else "stopped" if job.state == "stopped" else "failed",
        "process": None,
        "job": job.summary(),
        "is_usable": False,
        "has_report": False,
    }


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _summary(record: RunRecord) -> dict[str, Any]:
    figures = key_figures(record.lines, record.facts.saved_step)
    verdicts = [proof.verdict for proof in record.facts.proofs]
    return {
        "record": record,
        "title": title_of(record),
        "problem": record.why_missing if "damaged" in record.why_missing else "",
        "step": figures["last_step"],
        "loss": figures["last_loss"],
        "eval_loss": figures["last_held_out"],
        "speed": figures["speed"],
        "memory": figures["memory"],
        "date": record.facts.date,
        "seconds": record.facts.seconds,
        "passed": verdicts.count("passed"),
        "failed": [proof.name for proof in record.facts.proofs if proof.verdict == "failed"],
        "num_proofs": len(verdicts),
    }


def _news(path: Path, lines: Sequence[Mapping[str, Any]], have: str) -> tuple[list[Any], str]:
    """Return the lines that a page does not have yet, and the mark of those that it has then.

    A resumed run cuts its metrics, and writes its recipe again: then all lines are sent.
    """
    began = _stamp(path / RECIPE)
    known, _, count = have.partition(":")
    first = int(count) if known == str(began) and count.isdigit() and len(count) < 10 else 0
    first = first if first <= len(lines) else 0
    sent = list(lines[first : first + MOST_LINES])
    return sent, f"{began}:{first + len(sent)}"


def _logged_proofs(log: str) -> Iterator[Proof]:
    """Yield the proofs that a running command has reported in its log."""
    for line in log.splitlines():
        if match := _PROOF.fullmatch(line.strip()):
            name, verdict = (_in_english().get(text, text) for text in match.group(1, 2))
            detail = match[3] or match[4] or ""
            yield Proof(name, verdict, detail)  # type: ignore[arg-type]


@functools.cache
def _in_english() -> dict[str, str]:
    """Names and verdicts of proofs by their Chinese twins."""
    return {in_chinese(text): text for text in (*PROOFS, "passed", "failed", "not run")}


def _in_order(proofs: Sequence[Proof], *, is_over: bool) -> list[Proof]:
    """Return the proofs; of a run that has ended, those that are missing as not run."""
    if not is_over:
        return list(proofs)
    named = {proof.name for proof in proofs}
    return [*proofs, *(Proof(name, "not run") for name in PROOFS if name not in named)]


def _progress(path: Path, record: RunRecord, job: Job | None, *, is_running: bool) -> Progress:
    """Estimate how far a run is, and how long it takes yet.

    The length comes from the recipe and the epochs so far. The time comes from the steps since the
    recipe was written, which is when training begins; what an evaluation takes is in it.
    """
    lines = record.lines
    if not lines:
        return Progress(0, None, None)
    step = max(line["step"] for line in lines)
    num_steps = record.value("training.max_steps")
    if not isinstance(num_steps, int):
        epochs = record.value("training.num_train_epochs")
        last = next((line for line in reversed(lines) if line.get("epoch")), None)
        num_steps = None
        if last is not None and isinstance(epochs, int | float):
            num_steps = max(step, round(epochs * last["step"] / last["epoch"]))
    if not is_running or num_steps is None:
        return Progress(step, num_steps, None)
    first = 0 if job is None else job.record.first_step
    seconds = (_stamp(path / METRICS) - _stamp(path / RECIPE)) / 1e9
    if step <= first or seconds <= 0:
        return Progress(step, num_steps, None)
    return Progress(step, num_steps, seconds / (step - first) * (num_steps - step))


def _is_usable(path: Path) -> bool:
    """Whether a run has left an adapter or a model."""
    return (path / CARD).is_file() or (path / "adapter_config.json").is_file()


def steps_done(path: Path) -> int:
    """Return the last step in the metrics of a run."""
    return max((line["step"] for line in read_metrics(path / METRICS)), default=0)
