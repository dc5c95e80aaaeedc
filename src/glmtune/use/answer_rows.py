"""A model and some rows -> answers, for the command and for the library.

open_rows    base, adapter, template, questions    no weights are read yet
file         the file of answers, and those of an interrupted run
answers      the other answers, one after the other
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.model.load import load_config
from glmtune.recipe.choices import Layout
from glmtune.recipe.sections import DataSection
from glmtune.template.base import Template
from glmtune.use.generate import BATCH_SIZE, Sampling
from glmtune.use.open import load_tuned, open_template
from glmtune.use.predict import AnswerFile, Question, identify, predict, read_questions

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OpenRows:
    """Rows to answer, and what answers them.

    Attributes:
        base, adapter: folder or hub id, and the folder of an adapter.
        template: makes the prompts.
        questions: the rows.
        context_length: the tokens that prompt and answer may have together.
        dtype: of the weights.
        sampling: how to sample.
    """

    base: str
    adapter: Path | None
    template: Template
    questions: list[Question]
    context_length: int | None
    dtype: str
    sampling: Sampling

    def answers(
        self, *, done: Mapping[int, Line] | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[Line]:
        """Answer the rows that are not done, as `predict` does.

        Args:
            done: lines of an earlier run, by the number of their row.
            batch_size: how many are answered at once.

        Raises:
            CheckpointError: a folder is damaged, or the model's scores are not finite.
        """
        waiting = [each for each in self.questions if each.row not in (done or {})]
        if not waiting:
            return iter(())
        return predict(
            load_tuned(self.base, self.adapter, dtype=self.dtype),
            self.template,
            waiting,
            sampling=self.sampling,
            context_length=self.context_length,
            batch_size=batch_size,
        )

    def file(self, output: Path, *, resume: bool) -> AnswerFile:
        """Return the file of answers, with those of an interrupted run.

        Raises:
            OutputError: the answers there are others'.
        """
        file = AnswerFile(
            output,
            identify(
                self.base, self.adapter, self.template, self.questions, self.sampling, self.dtype
            ),
        )
        if resume:
            file.resume()
        return file


def open_rows(
    model: str,
    section: DataSection,
    sampling: Sampling,
    *,
    adapter: Path | None = None,
    layout: Layout | None = None,
    dtype: str = "auto",
    any_template: bool = False,
) -> OpenRows:
    """Open a model and the rows of `data.train`.

    Args:
        model, adapter, layout, any_template: as for `open_session`.
        section: which rows, and how they are read.
        sampling: how to sample.
        dtype: of the weights, or "auto".

    Raises:
        CheckpointError: a folder is missing or damaged.
        DataError: as `read_questions`.
        TemplateError: the adapter was trained on other prompts.
    """
    base, folder, template = open_template(model, adapter, layout=layout, any_template=any_template)
    context_length: int | None = getattr(load_config(base), "max_position_embeddings", None)
    questions = read_questions(section, template, context_length=context_length)
    return OpenRows(base, folder, template, questions, context_length, dtype, sampling)
