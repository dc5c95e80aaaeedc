"""Texts -> how surprising they are to a model: perplexity, and bits for each character.

    perplexity          exp(nats / tokens)             compares models with one tokenizer
    bits-per-character  nats / ln 2 / characters       compares any models

A text longer than the window is cut into windows, each with what the tokenizer puts before a text
([gMASK] sop). Every token after that is measured, so smaller windows give a higher perplexity.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from glmtune.data.rows import raise_bad_row
from glmtune.data.sources import find_sources
from glmtune.data.texts import documents, text_column
from glmtune.errors import DataError
from glmtune.recipe.sections import DataSection
from glmtune.template.base import IGNORE, Example
from glmtune.use.evaluate.kept import Line
from glmtune.use.evaluate.likelihood import log_likelihoods
from glmtune.use.evaluate.results import TaskName
from glmtune.use.evaluate.statistics import Measured, as_array
from glmtune.use.evaluate.task import Measurement

LEAST_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Text:
    """A text: its place, its characters and its tokens."""

    file: str
    line: int
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PerplexityTask:
    """Measure the likelihood of texts.

    Attributes:
        texts: by their number.
        before: ids that the tokenizer puts before a text.
        window: the most tokens that go through the model together, `before` included.
        data: the sources.
    """

    texts: Mapping[int, Text]
    before: tuple[int, ...]
    window: int
    data: tuple[str, ...]
    name: TaskName = "perplexity"
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, str | int | float | None]:
        """The window."""
        return {"window": self.window}

    @property
    def rows(self) -> Sequence[int]:
        """The numbers of the texts."""
        return [*self.texts]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The ids of the texts, and the window."""
        digest = sha256(repr(self.before).encode())
        for number, text in self.texts.items():
            digest.update(repr((number, text.ids)).encode())
        return {"texts": digest.hexdigest()[:16], "window": self.window}

    def lines(self, model: Any, rows: Sequence[int], batch_size: int) -> Iterator[Line]:
        """Measure some texts; one is given when all of its windows are measured."""
        windows = [(row, window) for row in rows for window in self._windows(self.texts[row])]
        waiting = Counter(row for row, _ in windows)
        nats, tokens = dict.fromkeys(waiting, 0.0), dict.fromkeys(waiting, 0)
        examples = [window for _, window in windows]
        for index, logp in log_likelihoods(model, examples, batch_size):
            row, example = windows[index]
            nats[row] -= logp
            tokens[row] += sum(label != IGNORE for label in example.labels[1:])
            waiting[row] -= 1
            if not waiting[row]:
                text = self.texts[row]
                place = {"row": row, "file": text.file, "line": text.line}
                yield Line(**place, prompt=text.text[:80], tokens=tokens[row], nats=nats[row])

    def _windows(self, text: Text) -> Iterator[Example]:
        room = self.window - len(self.before)
        for start in range(0, len(text.ids), room):
            ids = text.ids[start : start + room]
            labels = [IGNORE] * len(self.before) + list(ids)
            yield Example([*self.before, *ids], labels)

    def measure(self, lines: Mapping[int, Line]) -> dict[str, Measurement]:
        """Return perplexity and bits for each character, over all texts together."""
        rows = tuple(sorted(row for row, line in lines.items() if line.tokens))
        nats = as_array([lines[row].nats or 0.0 for row in rows])
        tokens = as_array([lines[row].tokens for row in rows])
        characters = as_array([len(self.texts[row].text) for row in rows])
        return {
            "perplexity": Measurement(rows, Measured(nats, tokens, np.exp, better="lower")),
            "bits-per-character": Measurement(
                rows, Measured(nats / math.log(2), characters, better="lower")
            ),
        }

    def subjects(self, rows: Iterable[int]) -> Mapping[int, str]:
        """Return nothing, since texts have no subject."""
        return {}


def perplexity_task(
    section: DataSection, tokenizer: Any, *, context_length: int | None
) -> PerplexityTask:
    """Read the texts of `data.train`: a column `text`, or the paragraphs of a text file.

    Args:
        section: its sources; `columns: {text: NAME}` names the column, and `max_length` the window.
        tokenizer: of the model.
        context_length: of the model.

    Raises:
        DataError: a source cannot be read, a row has no text, or the window is too small.
    """
    window = min(section.max_length, context_length or section.max_length)
    before = tuple(tokenizer("")["input_ids"])
    if window - len(before) < LEAST_WINDOW:
        raise DataError(
            f"data.max_length={section.max_length} leaves a window of {window - len(before)} "
            f"tokens, expected at least {LEAST_WINDOW}. Raise it; 1024 is the default."
        )
    column = section.columns.get("text", "text")
    texts: dict[int, Text] = {}
    skipped, number = 0, 0
    for source in find_sources(section.train, split=section.split):
        rows = source.rows()
        for row, text in documents(rows, text_column(source, column), raise_bad_row):
            number += 1
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if ids:
                texts[number] = Text(row.file, row.line, text, tuple(ids))
            else:
                skipped += 1
    if not texts:
        raise DataError(f"{', '.join(map(str, section.train))}: there is no text to measure.")
    note = f"{skipped} texts are empty and were left out"
    sources = tuple(map(str, section.train))
    return PerplexityTask(texts, before, window, sources, notes=(note,) if skipped else ())
