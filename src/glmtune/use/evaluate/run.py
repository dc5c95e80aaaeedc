"""A task and a model -> an `Evaluation`: the steps, in order.

    open the template, no weights    open_model
    read the rows                    answers_task, choice_task, perplexity_task
    let the model do them            evaluate: first with its adapter, then without
    score, compare                   on the same rows

Nothing is loaded for rows whose lines are kept.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glmtune
from glmtune.errors import OutputError
from glmtune.methods import digest, method
from glmtune.methods.full import FULL_MODEL
from glmtune.model.files import locate
from glmtune.model.load import load_config
from glmtune.template.base import Template
from glmtune.use.evaluate.kept import KeptAnswers, Line
from glmtune.use.evaluate.results import Evaluation, Part, Score
from glmtune.use.evaluate.statistics import Difference, Measured, compare, interval
from glmtune.use.evaluate.task import Measurement, ModelChoice, Task
from glmtune.use.open import load_tuned, open_template

logger = logging.getLogger(__name__)

Show = Callable[[Iterable[Line], int, int], Iterator[Line]]
"""(lines, number of all rows, number of those done) -> the lines, shown as they come."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model whose template is known and whose weights are not read yet.

    Attributes:
        choice: what the user asked for.
        base: the name of the base.
        adapter: the folder of the adapter; None for a model alone.
        template: of the prompts.
        context_length: of the model, in tokens; None if its config has none.
    """

    choice: ModelChoice
    base: str
    adapter: Path | None
    template: Template
    context_length: int | None

    def identity(self, adapter: Path | None) -> dict[str, Any]:
        """Return what decides its answers to given prompts."""
        weights = [] if adapter is None else method.method_in(adapter).weight_files(adapter)
        folder = Path(locate(self.base))
        return {
            "model": self.base,
            "model_digest": FULL_MODEL.digest(folder) if folder.is_dir() else None,
            "adapter": [digest.short_sha256(file) for file in weights],
            "template": self.template.fingerprint[:16],
            "dtype": self.choice.dtype,
        }


def open_model(choice: ModelChoice) -> OpenedModel:
    """Find the base, the adapter and the template; no weights are read.

    Raises:
        CheckpointError: a folder is missing or damaged.
        TemplateError: the adapter was trained on other prompts.
    """
    base, folder, template = open_template(
        choice.name, choice.adapter, layout=choice.layout, any_template=choice.any_template
    )
    length: int | None = getattr(load_config(base), "max_position_embeddings", None)
    return OpenedModel(choice, base, folder, template, length)


def evaluate(
    opened: OpenedModel,
    task: Task,
    output: Path,
    *,
    with_base: bool = False,
    overwrite: bool = False,
    show: Show | None = None,
) -> Evaluation:
    """Let a model do a task, and write the result.

    Args:
        opened: the model.
        task: the rows.
        output: of the result. The answers are kept beside it, and are used again where they fit.
        with_base: also evaluate the base without the adapter, and compare the two.
        overwrite: replace a result, and answers that do not fit.
        show: shows lines as they come.

    Raises:
        OutputError: a file cannot be written, or would be lost.
        CheckpointError: the weights cannot be read, or their scores are not finite.
        DataError: a metric of the user's own fails.
    """
    if with_base and opened.adapter is None:
        raise OutputError(
            f"{opened.base}: has no adapter, so there is no base to compare it with. Name the "
            "adapter (--adapter), or leave --with-base out."
        )
    show = show or (lambda lines, total, done: iter(lines))
    began = time.perf_counter()
    places = {"tuned": kept_beside(output)}
    if with_base:
        places["base"] = kept_beside(output, "base-answers")
    kept = {
        which: _open_kept(opened, task, path, is_base=which == "base", overwrite=overwrite)
        for which, path in places.items()
    }
    for which, answers in kept.items():
        _complete(opened, task, answers, show, is_base=which == "base")
    return write_result(opened, task, kept, output, seconds=time.perf_counter() - began)


def write_result(
    opened: OpenedModel,
    task: Task,
    kept: Mapping[str, KeptAnswers],
    output: Path,
    *,
    seconds: float = 0.0,
) -> Evaluation:
    """Score complete answers, and write the result.

    Args:
        opened: the model.
        task: the rows.
        kept: the answers of "tuned", and of "base" if there are any.
        output: of the result.
        seconds: that the answers took.

    Raises:
        OutputError: the file cannot be written.
        DataError: a metric of the user's own fails.
    """
    found = {which: task.measure(_of_task(task, answers)) for which, answers in kept.items()}
    places = {which: answers.path for which, answers in kept.items()}
    result = _summarize(opened, task, found, places, seconds)
    result.write(output)
    return result


def keep_answers(
    opened: OpenedModel, task: Task, output: Path, lines: Iterable[Line], *, is_base: bool = False
) -> KeptAnswers:
    """Write lines that a loaded model has given as the answers of a result.

    Raises:
        OutputError: the file cannot be written, or holds other answers.
    """
    path = kept_beside(output, "base-answers" if is_base else "answers")
    answers = _open_kept(opened, task, path, is_base=is_base, overwrite=True)
    for _ in answers.add(lines):
        pass
    return answers


def kept_beside(output: Path, what: str = "answers") -> Path:
    """Return the path of the answers of a result."""
    return output.with_name(f"{output.stem}.{what}.jsonl")


def _open_kept(
    opened: OpenedModel, task: Task, path: Path, *, is_base: bool, overwrite: bool
) -> KeptAnswers:
    adapter = None if is_base else opened.adapter
    identity = {"task": task.name, **opened.identity(adapter), **task.identity}
    answers = KeptAnswers(path, identity)
    answers.open(overwrite=overwrite)
    if answers.lines:
        logger.info("%s: %d rows are answered already", path, len(_of_task(task, answers)))
    return answers


def _of_task(task: Task, answers: KeptAnswers) -> dict[int, Line]:
    return {row: answers.lines[row] for row in task.rows if row in answers.lines}


def _complete(
    opened: OpenedModel, task: Task, answers: KeptAnswers, show: Show, *, is_base: bool
) -> None:
    """Load the model and do the rows that are missing, if there are any."""
    waiting = [row for row in task.rows if row not in answers.lines]
    if not waiting:
        return
    adapter = None if is_base else opened.adapter
    model = load_tuned(opened.base, adapter, dtype=opened.choice.dtype)
    new = task.lines(model, waiting, opened.choice.batch_size)
    for _ in show(answers.add(new), len(task.rows), len(task.rows) - len(waiting)):
        pass


def _summarize(
    opened: OpenedModel,
    task: Task,
    found: Mapping[str, Mapping[str, Measurement]],
    places: Mapping[str, Path],
    seconds: float,
) -> Evaluation:
    tuned, base = found["tuned"], found.get("base")
    return Evaluation(
        task=task.name,
        model=opened.base,
        adapter=None if opened.adapter is None else str(opened.adapter),
        data=task.data,
        num_rows=len(task.rows),
        scores={name: score_of(each) for name, each in tuned.items()},
        base=None if base is None else {name: score_of(each) for name, each in base.items()},
        differences={} if base is None else differences(base, tuned),
        by_subject=_by_subject(task, tuned, base),
        notes=task.notes,
        settings={"layout": opened.template.description.get("layout"), **task.settings},
        answers=places["tuned"].name,
        base_answers=places["base"].name if "base" in places else None,
        seconds=seconds,
        version=glmtune.__version__,
    )


def score_of(measurement: Measurement) -> Score:
    """Return the score of a metric, with its interval."""
    measured = measurement.measured
    low, high = interval(measured)
    return Score(
        value=float(measured.total()),
        low=low,
        high=high,
        num_rows=len(measurement.rows),
        corpus=measurement.corpus,
    )


def differences(
    base: Mapping[str, Measurement], tuned: Mapping[str, Measurement]
) -> dict[str, Difference]:
    """Compare two models by each metric, on the rows that it applies to in both."""
    found = {}
    for name in tuned:
        if name not in base:
            continue
        common = set(base[name].rows) & set(tuned[name].rows)
        if common:
            sides = (of_rows(each[name], common) for each in (base, tuned))
            found[name] = compare(*sides)
    return found


def of_rows(measurement: Measurement, rows: set[int]) -> Measured:
    """Return what was measured of some rows, in order."""
    chosen = [index for index, row in enumerate(measurement.rows) if row in rows]
    measured = measurement.measured
    return Measured(
        measured.values[chosen],
        None if measured.weights is None else measured.weights[chosen],
        measured.transform,
        measured.is_share,
        measured.better,
    )


def _by_subject(
    task: Task, tuned: Mapping[str, Measurement], base: Mapping[str, Measurement] | None
) -> dict[str, Part]:
    """Score every subject by the first metric."""
    name = next(iter(tuned), None)
    subjects = task.subjects(task.rows)
    if name is None or not subjects:
        return {}

    def part(found: Mapping[str, Measurement] | None, rows: set[int]) -> Score | None:
        if found is None:
            return None
        chosen = tuple(row for row in found[name].rows if row in rows)
        return score_of(Measurement(chosen, of_rows(found[name], rows))) if chosen else None

    parts = {}
    for subject in dict.fromkeys(subjects.values()):
        rows = {row for row, each in subjects.items() if each == subject}
        if (score := part(tuned, rows)) is not None:
            parts[subject] = Part(score=score, base=part(base, rows))
    return parts
