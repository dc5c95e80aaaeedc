"""The evaluation of the demo: held-out rows, answered before and after, scored as by evaluate.

The result is in the folder of the run, as `glmtune evaluate` would write it, so the report and the
card show it, and that command can score the same answers by another metric.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.recipe.sections import DataSection
from glmtune.template.base import Template
from glmtune.use.evaluate.answers import AnswersTask, answers_task, choose_metrics
from glmtune.use.evaluate.kept import Line
from glmtune.use.evaluate.names import scores_file
from glmtune.use.evaluate.results import Evaluation
from glmtune.use.evaluate.run import keep_answers, open_model, write_result
from glmtune.use.evaluate.task import ModelChoice
from glmtune.use.generate import Sampling

MAX_NEW_TOKENS = 64  # no answer of the demo is longer
METRICS = ("exact", "number", "rouge-l-char")
BATCH_SIZE = 32

Answers = Mapping[int, Line]


def read_questions(path: Path, template: Template) -> AnswersTask:
    """Read the held-out rows.

    Raises:
        DataError: a row cannot be read.
    """
    return answers_task(
        DataSection(train=(str(path),), format="alpaca"),
        template,
        choose_metrics(METRICS),
        sampling=Sampling(temperature=0, max_new_tokens=MAX_NEW_TOKENS),
        context_length=None,
    )


def answer(model: Any, task: AnswersTask) -> Answers:
    """Answer all questions, many at once, always with the likeliest token."""
    return {line.row: line for line in task.lines(model, task.rows, BATCH_SIZE)}


def count_right(task: AnswersTask, answers: Answers) -> int:
    """Count the answers that are right to the letter."""
    return int(task.measure(answers)["exact"].measured.values.sum() / 100)


def write_scores(
    model: str, adapter: Path, task: AnswersTask, before: Answers, after: Answers
) -> Evaluation:
    """Write the evaluation of the base and the tuned model into the folder of the run.

    Raises:
        OutputError: a file cannot be written.
    """
    opened = open_model(ModelChoice(model, str(adapter), dtype="float32"))
    output = adapter / scores_file("answers")
    kept = {
        "tuned": keep_answers(opened, task, output, after.values()),
        "base": keep_answers(opened, task, output, before.values(), is_base=True),
    }
    return write_result(opened, task, kept, output)
