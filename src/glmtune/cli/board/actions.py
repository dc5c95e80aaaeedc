"""What is done with runs: start, stop, resume, compare, evaluate, merge and export them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from glmtune.cli.board.bodies import Body, Nothing
from glmtune.cli.board.folder import BoardError, StartFolder
from glmtune.cli.board.form import as_override, build
from glmtune.cli.board.jobs import Jobs
from glmtune.cli.board.runs import Runs, steps_done
from glmtune.prove.compare import compare
from glmtune.prove.report.record import read_record
from glmtune.recipe.commented import commented
from glmtune.recipe.recipe import RECIPE
from glmtune.train.run_folder import check_folder, process_of

Words = Annotated[tuple[str, ...], Field(max_length=20)]
Name = Annotated[str, Field(min_length=1, max_length=4_000)]


class OfRun(Body):
    """A run, by its folder."""

    path: Name


class Watched(OfRun):
    """A run, and the mark of the metrics that the page has."""

    have: Annotated[str, Field(max_length=60)] = ""


class Started(Body):
    """A filled form to train, and on how many GPUs."""

    processes: Annotated[int, Field(ge=1, le=64)] = 1
    values: Annotated[dict[str, Any], Field(max_length=500)]


class Stopped(OfRun):
    """A run to stop; at once means without a checkpoint."""

    at_once: bool = False


class OfJob(Body):
    """A job, by its id."""

    id: Name


class Compared(Body):
    """Runs to compare."""

    paths: Annotated[list[str], Field(min_length=2, max_length=12)]


class Evaluated(OfRun):
    """A run to evaluate on rows below the start folder."""

    rows: Name
    metrics: Words = ()
    with_base: bool = False
    overwrite: bool = False


class Exported(OfRun):
    """A run to merge or export into a new folder below the start folder."""

    output: Name
    to: Literal["merged", "chatglm", "glm", "lora-glm", "vllm", "gguf", "lora-gguf", "ollama"]
    quantize: Annotated[str, Field(max_length=20)] = ""


class Actions:
    """What the tabs Run and Runs ask for.

    Args:
        start: the start folder.
        jobs: where commands are started.
        runs: finds and reads runs.
    """

    def __init__(self, start: StartFolder, jobs: Jobs, runs: Runs) -> None:
        self._start, self._jobs, self._runs = start, jobs, runs

    def all(self, asked: Nothing) -> Any:
        """List all runs."""
        return {"runs": self._runs.all()}

    def watch(self, asked: Watched) -> Any:
        """Read a run."""
        return self._runs.read(asked.path, asked.have)

    def start(self, asked: Started) -> Any:
        """Train the recipe of the form.

        Raises:
            BoardError: the output folder is not below the start folder.
            OutputError: it holds a run already.
            RecipeError: a key is wrong.
        """
        recipe = build(asked.values)
        output = self._start.inside(recipe.output.dir)
        self._start.check_new(output)
        check_folder(output, resume=False, overwrite=recipe.output.overwrite)
        self._refuse_running(self._start.name(output))
        folder = self._jobs.prepare("train")
        (folder / RECIPE).write_text(commented(recipe) + "\n", encoding="utf-8")
        command = ["train", self._start.name(folder / RECIPE)]
        command += ["--nproc", str(asked.processes)] if asked.processes > 1 else []
        job = self._jobs.begin("train", folder, command, self._start.name(output))
        return {"path": job.record.target, "job": job.summary()}

    def resume(self, asked: OfRun) -> Any:
        """Continue a run from its newest checkpoint.

        Raises:
            BoardError: it runs already, or there is no such run.
        """
        path = self._runs.folder(asked.path)
        name = self._start.name(path)
        self._refuse_running(name)
        record = read_record(path, damaged_too=True)
        changes: tuple[str, ...] = ()
        if self._start.inside(str(record.value("output.dir"))) != path:  # it was moved
            changes = (as_override("output.dir", name),)
        if record.value("output.overwrite") is True:
            changes = (*changes, "output.overwrite=false")
        kind = "pretrain" if record.is_pretraining else "train"
        command = [
            kind,
            self._start.word(path / RECIPE),
            *changes,
            *self._processes(name),
            "--resume",
        ]
        folder = self._jobs.prepare("train")
        job = self._jobs.begin("train", folder, command, name, steps_done(path))
        return {"path": name, "job": job.summary()}

    def stop(self, asked: Stopped) -> Any:
        """Interrupt a run as Ctrl-C does, so that it saves a checkpoint.

        Raises:
            BoardError: it does not run, or was not started by the board.
        """
        path = self._start.inside(asked.path)
        job = self._jobs.latest("train", self._start.name(path))
        if job is None or job.state != "running":
            number = process_of(path)
            raise BoardError(
                "it does not run any more. Reload the page."
                if number is None
                else f"it was started elsewhere, as process {number}. Press Ctrl-C there.",
                409,
            )
        self._jobs.stop(job, at_once=asked.at_once)
        return {}

    def compare(self, asked: Compared) -> Any:
        """Compare runs, as `glmtune compare` does.

        Raises:
            OutputError: a folder holds no run.
        """
        found = compare([self._runs.folder(each) for each in asked.paths])
        return {
            "names": found.names,
            "tables": {
                title: [
                    {"label": row.label, "values": row.values, "differs": row.differs}
                    for row in rows
                ]
                for title, rows in found.tables.items()
            },
            "notes": found.notes,
        }

    def evaluate(self, asked: Evaluated) -> Any:
        """Score a run on rows, as `glmtune evaluate` does.

        Raises:
            BoardError: a path is not below the start folder.
        """
        path = self._runs.folder(asked.path)
        rows = self._start.word(self._start.inside(asked.rows))
        command = ["evaluate", self._start.word(path), rows]
        for metric in asked.metrics:
            if ":" in metric:  # a function of a file would be code from a page
                raise BoardError(f"{metric[:100]}: expected the name of a metric, such as exact.")
            command += ["-m", metric]
        command += ["--with-base"] * asked.with_base + ["--overwrite"] * asked.overwrite
        folder = self._jobs.prepare("evaluate")
        return self._jobs.begin("evaluate", folder, command, self._start.name(path)).summary()

    def export(self, asked: Exported) -> Any:
        """Merge or export what a run made, as the commands of these names do.

        Raises:
            BoardError: the output is not a new name below the start folder.
        """
        path = self._runs.folder(asked.path)
        output = self._start.inside(asked.output)
        self._start.check_new(output)
        if output.exists():
            raise BoardError(f"{asked.output[:200]}: exists already. Choose another name.", 409)
        to = [] if asked.to == "merged" else ["--to", asked.to]
        kind: Literal["merge", "export"] = "export" if to else "merge"
        quantize = ["--quantize", asked.quantize] if to and asked.quantize else []
        command = [kind, self._start.word(path), *to, *quantize, "-o", self._start.word(output)]
        folder = self._jobs.prepare(kind)
        return self._jobs.begin(kind, folder, command, self._start.name(path)).summary()

    def jobs(self, asked: Nothing) -> Any:
        """List what was started, apart from training."""
        return {"jobs": [j.summary() for j in self._jobs.all() if j.record.kind != "train"]}

    def job(self, asked: OfJob) -> Any:
        """Show a job and its log."""
        job = self._jobs.find(asked.id)
        return job.summary() | {"log": job.log()}

    def stop_job(self, asked: OfJob) -> Any:
        """Interrupt a job."""
        self._jobs.stop(self._jobs.find(asked.id))
        return {}

    def _processes(self, name: str) -> tuple[str, ...]:
        """Return the option that says how many processes trained a run, as before."""
        job = self._jobs.latest("train", name)
        if job is None or "--nproc" not in job.record.command:
            return ()
        at = job.record.command.index("--nproc")
        return job.record.command[at : at + 2]

    def _refuse_running(self, name: str) -> None:
        job = self._jobs.latest("train", name)
        if job is not None and job.state == "running":
            raise BoardError(f"{name}: a run is writing into this folder. Wait, or stop it.", 409)
