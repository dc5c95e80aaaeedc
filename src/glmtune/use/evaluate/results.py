"""The result of an evaluation: what was measured of which model, as JSON and back.

Every score is a mean over the rows that its metric applies to, with a 95 % interval. Where base
and tuned model were both evaluated, each metric also has their difference on the same rows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from glmtune.errors import OutputError
from glmtune.files import read_json_as, write_atomically
from glmtune.use.evaluate.statistics import Difference

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
TaskName = Literal["answers", "choice", "perplexity"]


class Score(BaseModel):
    """One metric of one model.

    Attributes:
        value: the mean; percent for shares.
        low, high: its 95 % interval.
        num_rows: that the metric applies to.
        corpus: the score of the whole set at once, for BLEU and chrF.
    """

    model_config = ConfigDict(frozen=True)

    value: Number
    low: Number
    high: Number
    num_rows: Count
    corpus: Number | None = None


class Part(BaseModel):
    """The scores of a part of the rows, such as a subject."""

    model_config = ConfigDict(frozen=True)

    score: Score
    base: Score | None = None


class Evaluation(BaseModel):
    """What an evaluation measured.

    Attributes:
        task: what was done with the rows.
        model, adapter: names of the base and the folder of the adapter.
        data: the sources of the rows.
        num_rows: that were evaluated.
        scores: by metric, of the model with its adapter, if it has one.
        base: the same of the model without the adapter; None if it was not evaluated.
        differences: by metric, tuned less base.
        by_subject: of choices, by subject.
        notes: what a reader must know, such as rows that were left out.
        settings: how it was done: sampling, few-shot examples, layout.
        answers, base_answers: the files of the answers, next to the result.
        seconds: of generation and scoring.
        version: of glmtune.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["glmtune evaluation"] = "glmtune evaluation"
    task: TaskName
    model: str
    adapter: str | None = None
    data: tuple[str, ...]
    num_rows: Count
    scores: Mapping[str, Score]
    base: Mapping[str, Score] | None = None
    differences: Mapping[str, Difference] = {}
    by_subject: Mapping[str, Part] = {}
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str | int | float | None] = {}
    answers: str | None = None
    base_answers: str | None = None
    seconds: Annotated[Number, Field(ge=0)] = 0.0
    version: str = ""

    @property
    def data_names(self) -> str:
        """The names of the sources, without their folders."""
        return ", ".join(Path(source).name for source in self.data)

    def write(self, path: Path) -> None:
        """Write the result as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        write_atomically(path, self.model_dump_json(indent=1) + "\n")


def read_evaluation(path: Path) -> Evaluation:
    """Read the result of an evaluation.

    Raises:
        OutputError: the file cannot be read, or is not one that `glmtune evaluate` wrote.
    """
    remedy = "Run `glmtune evaluate` again, or give a file that it wrote."
    return read_json_as(path, Evaluation, OutputError, remedy=remedy)[0]
