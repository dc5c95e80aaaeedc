"""All rows of a recipe -> totals as training counts them, and the rows that need attention."""

import heapq
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from glmtune.conversation import Conversation
from glmtune.data.dataset import Dataset, Entry
from glmtune.data.encode import cannot_encode
from glmtune.data.fit import Fate, describe_fate, fit
from glmtune.data.formats import convert_sides
from glmtune.data.learned_prompt import LearnedPrompt
from glmtune.data.rows import BadRow, RowError
from glmtune.data.store import EncodeReport
from glmtune.data.writer import Tally
from glmtune.errors import TemplateError
from glmtune.inspect.row import side_of
from glmtune.inspect.shown_row import ShownRow, show_row
from glmtune.model.load import load_tokenizer
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.sections import DataSection
from glmtune.template.base import IGNORE, Example, Template
from glmtune.template.select import template_for

_BYTE = re.compile(r"<0x[89A-F][0-9A-F]>")  # only bytes above ASCII are gaps of the vocabulary
NUM_WORST = 5
MAX_BAD_ROWS = 50  # listed on the page; all are counted


@dataclass(frozen=True, slots=True)
class Survey:
    """The rows of a recipe, counted and sampled.

    Attributes:
        template: the template's description.
        report: the totals; equal to those of `encode_data`, or of `encode_pairs`.
        chosen: the rows that were asked for.
        worst: the measure -> the rows with the largest value, the worst first.
        bad_rows: the first rows that could not be used.
    """

    template: dict[str, str]
    report: EncodeReport
    chosen: tuple[ShownRow, ...]
    worst: dict[str, tuple[ShownRow, ...]]
    bad_rows: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True)
class SurveyedRow:
    """A row that was encoded, or one side of a pair.

    Attributes:
        number: of the row, counted from 1.
        place: `file:line`, and which side of a pair.
        format: that it was read as.
        whole: the encoded row, uncut.
        fitted: what training learns; None for a row that is left out.
        fate: how it came to that.
        num_byte_tokens: tokens that are one byte of a character.
    """

    number: int
    place: str
    format: str
    whole: Example
    fitted: Example | None
    fate: Fate
    num_byte_tokens: int

    @property
    def num_lost(self) -> int:
        """Tokens that are lost because the row is too long."""
        kept = 0 if self.fitted is None else len(self.fitted.input_ids)
        return 0 if self.fate is Fate.WITHOUT_LABELS else len(self.whole.input_ids) - kept


_WORST: dict[str, Callable[[SurveyedRow], int]] = {
    "Longest": lambda row: len(row.whole.input_ids),
    "Too long: cut, shortened or left out": lambda row: row.num_lost,
    "Most byte tokens": lambda row: row.num_byte_tokens,
    "Nothing learned": lambda row: (
        len(row.whole.input_ids) if row.fate is Fate.WITHOUT_LABELS else 0
    ),
}


@dataclass(slots=True)
class _Surveyor:
    """Counts rows as they are read, and keeps the worst."""

    section: DataSection
    template: Template
    byte_ids: frozenset[int]
    tally: Tally
    bad_rows: list[BadRow] = field(default_factory=list)
    heaps: dict[str, list[tuple[int, int, int, SurveyedRow]]] = field(default_factory=dict)

    def encode(self, number: int, entry: Entry[tuple[Conversation, ...]]) -> list[SurveyedRow]:
        """Encode a row as training does, count it, and keep it while it is among the worst.

        A pair is left out entirely if one of its sides is.

        Raises:
            TemplateError: the row cannot be encoded.
        """
        row, format, conversations = entry
        section = self.section
        sides: list[SurveyedRow] = []
        for index, conversation in enumerate(conversations):
            whole = self.template.encode(conversation)
            limit = section.max_length
            fitted, fate = fit(whole, conversation, self.template, limit, section.overlong)
            num_bytes = sum(token_id in self.byte_ids for token_id in whole.input_ids)
            place = f"{row.file}:{row.line}{side_of(conversations, index)}"
            seen = SurveyedRow(number, place, format.name, whole, fitted, fate, num_bytes)
            sides.append(seen)
        fates = [side.fate for side in sides if side.fate is not Fate.UNCUT]
        longest = max(len(side.whole.input_ids) for side in sides)
        self.tally.add_row(longest, fates[0] if fates else Fate.UNCUT)
        kept = [side.fitted for side in sides if side.fitted is not None]
        if len(kept) == len(sides):
            learned = [len(example.labels) - example.labels.count(IGNORE) for example in kept]
            num_tokens = sum(len(example.input_ids) for example in kept)
            self.tally.add_examples(len(kept), num_tokens, sum(learned))
        for index, side in enumerate(sides):
            self._keep(side, index)
        return sides

    def _keep(self, row: SurveyedRow, index: int) -> None:
        for name, measure in _WORST.items():
            if (badness := measure(row)) > 0:
                heap = self.heaps.setdefault(name, [])
                heapq.heappush(heap, (badness, -row.number, index, row))
                if len(heap) > NUM_WORST:
                    heapq.heappop(heap)

    def refuse(self, bad: BadRow) -> None:
        """Count a row that cannot be used, or stop where training would.

        Raises:
            RowError: training does not skip it.
        """
        if not bad.can_be_skipped(self.section.bad_rows):
            raise RowError(bad)
        self.tally.add_bad(bad)
        if len(self.bad_rows) < MAX_BAD_ROWS:
            self.bad_rows.append(bad)

    def worst(self, name: str) -> list[SurveyedRow]:
        """Return the worst rows of a kind, the worst first."""
        return [row for *_, row in sorted(self.heaps.get(name, []), reverse=True)]


def survey_rows(
    recipe: Recipe, first: int = 1, count: int = 1, *, pairs: bool | None = False
) -> Survey:
    """Encode all rows of data.train once; keep the worst, and those that are asked for.

    Args:
        recipe: its model (only the tokenizer is read) and its data.
        first: the first row to show, counted from 1 through all files.
        count: how many from there; fewer, or none, at the end.
        pairs: as for `convert_sides`.

    Raises:
        CheckpointError: there is no tokenizer.
        DataError: a source cannot be read, or a row cannot be used and `bad_rows` is "fail".
    """
    section = recipe.data
    tokenizer = load_tokenizer(recipe.model.name_or_path, recipe.model.add_tokens)
    template = template_for(tokenizer, section.layout)
    if section.train_on_prompt:
        template = LearnedPrompt(template)
    dataset = Dataset.of(section, needs_label=recipe.has_labels)
    tally = Tally(section.max_length)
    tally.formats, tally.notes = dataset.formats, dataset.notes
    surveyor = _Surveyor(section, template, byte_ids(tokenizer), tally)
    chosen: list[SurveyedRow] = []
    entries = dataset.read(partial(convert_sides, pairs=pairs, needs_label=recipe.has_labels))
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, BadRow):
            surveyor.refuse(entry)
            continue
        try:
            sides = surveyor.encode(number, entry)
        except TemplateError as error:
            surveyor.refuse(cannot_encode(entry.row, error))
        else:
            if first <= number < first + count:
                chosen += sides
    return Survey(
        template=dict(template.description),
        report=tally.report(),
        chosen=tuple(_show(row, tokenizer, section) for row in chosen),
        worst={
            name: tuple(_show(row, tokenizer, section) for row in surveyor.worst(name))
            for name in _WORST
        },
        bad_rows=tuple(surveyor.bad_rows),
    )


def _show(row: SurveyedRow, tokenizer: Any, section: DataSection) -> ShownRow:
    return show_row(
        row.whole,
        row.fitted,
        tokenizer,
        place=row.place,
        format=row.format,
        fate=describe_fate(row.fate, len(row.whole.input_ids), section.max_length),
        number=row.number,
        num_byte_tokens=row.num_byte_tokens,
    )


def byte_ids(tokenizer: Any) -> frozenset[int]:
    """Find the tokens that are one byte of a character that is not in the vocabulary."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return frozenset(index for index, token in enumerate(tokens) if _BYTE.fullmatch(str(token)))
