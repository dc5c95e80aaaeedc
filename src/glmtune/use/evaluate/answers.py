"""Rows of any format -> generated answers, scored by metrics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from glmtune.errors import DataError
from glmtune.recipe.choices import METRIC_NAMES
from glmtune.recipe.sections import DataSection
from glmtune.template.base import Template
from glmtune.use.evaluate.kept import Line
from glmtune.use.evaluate.metrics import (
    METRICS,
    Answered,
    Metric,
    check_installed,
    corpus_score,
)
from glmtune.use.evaluate.own_metric import is_own, own_metric
from glmtune.use.evaluate.results import TaskName
from glmtune.use.evaluate.statistics import Measured, as_array
from glmtune.use.evaluate.task import Measurement
from glmtune.use.generate import Sampling
from glmtune.use.predict import Question, predict, read_questions

DEFAULT_METRICS = ("exact", "rouge-l-char")
ALWAYS = ("stop", "length")  # cost nothing, and explain the others


def choose_metrics(names: Sequence[str]) -> list[Metric]:
    """Return the metrics of some names, and those that are always measured.

    Raises:
        DataError: a name is unknown, its package is not installed, or its file cannot be used.
    """
    chosen: dict[str, Metric] = {}
    for name in (*names, *ALWAYS):
        if is_own(name):
            metric = own_metric(name)
        elif name in METRICS:
            metric = METRICS[name]  # type: ignore[index]  # a text that is one of the names
        else:
            raise DataError(
                f"{name!r} is not a metric. Choose from {', '.join(METRIC_NAMES)}, or give a "
                "function of your own as FILE.py:FUNCTION."
            )
        chosen[metric.name] = metric
    check_installed([*chosen])
    return list(chosen.values())


@dataclass(frozen=True)
class AnswersTask:
    """Answer every row, and compare with the row's own answer.

    Attributes:
        questions: by the number of their row.
        metrics: to score the answers by.
        template: of the prompts.
        sampling: how tokens are chosen.
        context_length: the tokens that prompt and answer may have together.
        data: the sources.
    """

    questions: Mapping[int, Question]
    metrics: Sequence[Metric]
    template: Template
    sampling: Sampling
    context_length: int | None
    data: tuple[str, ...]
    name: TaskName = "answers"
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, str | int | float | None]:
        """How tokens were chosen."""
        return asdict(self.sampling)

    @property
    def rows(self) -> Sequence[int]:
        """The numbers of the rows."""
        return [*self.questions]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The prompts, and how tokens are chosen."""
        return {"prompts": digest_of(self.questions.values()), "sampling": asdict(self.sampling)}

    def lines(self, model: Any, rows: Sequence[int], batch_size: int) -> Iterator[Line]:
        """Answer some rows, many at once."""
        for answer in predict(
            model,
            self.template,
            [self.questions[row] for row in rows],
            sampling=self.sampling,
            context_length=self.context_length,
            batch_size=batch_size,
        ):
            yield Line.model_validate(answer)

    def measure(self, lines: Mapping[int, Line]) -> dict[str, Measurement]:
        """Score the answers by every metric; one that applies to no row is left out."""
        answered = {
            row: Answered(line.answer, self.questions[row].reference, line.tokens, line.ended)
            for row, line in sorted(lines.items())
        }
        found = {}
        for metric in self.metrics:
            scores = {row: metric.of(each) for row, each in answered.items()}
            rows = tuple(row for row, score in scores.items() if score is not None)
            if rows:
                pairs = [(answered[row].answer, answered[row].reference or "") for row in rows]
                found[metric.name] = Measurement(
                    rows,
                    Measured(
                        as_array([score for score in scores.values() if score is not None]),
                        is_share=metric.is_share,
                        better=metric.better,
                    ),
                    corpus_score(metric.name, pairs),
                )
        return found

    def subjects(self, rows: Iterable[int]) -> Mapping[int, str]:
        """Return nothing, since rows have no subject."""
        return {}


def digest_of(questions: Iterable[Question]) -> str:
    """Identify prompts by their token ids."""
    digest = sha256()
    for question in questions:
        digest.update(repr((question.row, question.ids)).encode())
    return digest.hexdigest()[:16]


def answers_task(
    section: DataSection,
    template: Template,
    metrics: Sequence[Metric],
    *,
    sampling: Sampling,
    context_length: int | None,
) -> AnswersTask:
    """Read the rows of `data.train` as questions with reference answers.

    Raises:
        DataError: a source or a row cannot be used, or no row has a reference that is needed.
    """
    questions = read_questions(section, template, context_length=context_length)
    missing = sum(question.reference is None for question in questions)
    if missing == len(questions) and any(each.name not in ("json", *ALWAYS) for each in metrics):
        raise DataError(
            f"{', '.join(map(str, section.train))}: no row has an answer to compare with. Give "
            "rows with answers, or only metrics that need none: --metric json --metric stop."
        )
    note = f"{missing} of {len(questions)} rows have no answer to compare with"
    return AnswersTask(
        {question.row: question for question in questions},
        metrics,
        template,
        sampling,
        context_length,
        tuple(map(str, section.train)),
        notes=(note,) if missing else (),
    )
