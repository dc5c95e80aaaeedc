"""All rows of a recipe -> totals as the trainer counts them, and the rows worth looking at."""

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glmtune.conversation import Conversation
from glmtune.data.encode import Fate, fit
from glmtune.data.formats import check_roles, convert_sides
from glmtune.data.rows import BadRow, Row, RowError, excerpt
from glmtune.data.store import EncodeReport
from glmtune.errors import TemplateError
from glmtune.inspect.row import SIDES, rows_of
from glmtune.inspect.shown_row import ShownRow, show_row
from glmtune.model.load import load_tokenizer
from glmtune.recipe.recipe import Recipe
from glmtune.template.base import IGNORE, Example, Template
from glmtune.template.select import template_for

_BYTE = re.compile(r"<0x[89A-F][0-9A-F]>")  # ASCII is no lack of the vocabulary
NUM_WORST = 5
MAX_BAD_ROWS = 50  # listed on the page; all are counted

_FATES = {
    Fate.WHOLE: "",
    Fate.CUT: "cut off at max_length, its end with it",
    Fate.SHORTENED: "prompt shortened to max_length",
    Fate.OVERLONG: "left out: longer than max_length",
    Fate.WITHOUT_LABELS: "left out: nothing in it is learned",
}


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to see of a recipe's rows.

    Attributes:
        template: how rows were laid out.
        report: the totals; equal to those of `encode_data`, or of `encode_pairs`.
        chosen: the rows that were asked for.
        worst: what they are the worst in, and the rows, the worst first.
        bad_rows: the first of those that could not be used.
    """

    template: dict[str, str]
    report: EncodeReport
    chosen: tuple[ShownRow, ...]
    worst: dict[str, tuple[ShownRow, ...]]
    bad_rows: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True)
class _Met:
    """A row that was encoded."""

    number: int
    place: str
    format: str
    whole: Example
    fitted: Example | None
    fate: Fate
    num_byte_tokens: int

    @property
    def num_lost(self) -> int:
        kept = 0 if self.fitted is None else len(self.fitted.input_ids)
        return 0 if self.fate is Fate.WITHOUT_LABELS else len(self.whole.input_ids) - kept


_WORST: dict[str, Callable[[_Met], int]] = {
    "Longest": lambda met: len(met.whole.input_ids),
    "Too long: cut, shortened or left out": lambda met: met.num_lost,
    "Most byte tokens": lambda met: met.num_byte_tokens,
    "Nothing learned": lambda met: (
        len(met.whole.input_ids) if met.fate is Fate.WITHOUT_LABELS else 0
    ),
}


@dataclass(slots=True)
class _Surveyor:
    """Counts rows as they pass, and keeps the worst."""

    recipe: Recipe
    template: Template
    byte_ids: frozenset[int]
    counts: dict[str, Any] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    bad_rows: list[BadRow] = field(default_factory=list)
    heaps: dict[str, list[tuple[int, int, int, _Met]]] = field(default_factory=dict)

    def meet(self, number: int, row: Row, format: str, sides: Sequence[Conversation]) -> list[_Met]:
        """Encode a row as training does, count it, and keep it while it is among the worst.

        A pair is left out as a whole, for the first of its sides that is.

        Raises:
            TemplateError: the row cannot be encoded.
        """
        section = self.recipe.data
        met: list[_Met] = []
        for side, conversation in zip(SIDES if len(sides) == 2 else [""], sides, strict=True):
            whole = self.template.encode(conversation)
            limit = section.max_length
            fitted, fate = fit(whole, conversation, self.template, limit, section.overlong)
            num_bytes = sum(token_id in self.byte_ids for token_id in whole.input_ids)
            place = f"{row.file}:{row.line}{side}"
            met.append(_Met(number, place, format, whole, fitted, fate, num_bytes))
        self._raise("longest", max(len(side.whole.input_ids) for side in met))
        self._add("num_rows", 1)
        if fates := [side.fate for side in met if side.fate is not Fate.WHOLE]:
            self._add(fates[0], 1)
        kept = [side.fitted for side in met if side.fitted is not None]
        if len(kept) == len(met):
            self._add("num_examples", len(kept))
            self._add("num_tokens", sum(len(example.input_ids) for example in kept))
            learned = [len(example.labels) - example.labels.count(IGNORE) for example in kept]
            self._add("num_learned_tokens", sum(learned))
        for index, each in enumerate(met):
            self._keep(each, index)
        return met

    def _keep(self, met: _Met, index: int) -> None:
        for name, measure in _WORST.items():
            if (badness := measure(met)) > 0:
                heap = self.heaps.setdefault(name, [])
                heapq.heappush(heap, (badness, -met.number, index, met))
                if len(heap) > NUM_WORST:
                    heapq.heappop(heap)

    def refuse(self, bad: BadRow) -> None:
        """Do with a row that cannot be used as training does.

        Raises:
            RowError: `bad_rows` is "fail".
        """
        if self.recipe.data.bad_rows == "fail":
            raise RowError(bad)
        self._add("num_rows", 1)
        self._add("num_bad_rows", 1)
        if len(self.bad_rows) < MAX_BAD_ROWS:
            self.bad_rows.append(bad)

    def report(self) -> EncodeReport:
        """Give the totals so far."""
        max_length = self.recipe.data.max_length
        empty = EncodeReport(max_length=max_length, formats=self.formats)
        return replace(empty, **self.counts)

    def worst(self, name: str) -> list[_Met]:
        """Give the worst rows of a kind, the worst first."""
        return [met for *_, met in sorted(self.heaps.get(name, []), reverse=True)]

    def _add(self, key: str, count: int) -> None:
        self.counts[key] = self.counts.get(key, 0) + count

    def _raise(self, key: str, value: int) -> None:
        self.counts[key] = max(self.counts.get(key, 0), value)


def survey_rows(
    recipe: Recipe, first: int = 1, count: int = 1, *, pairs: bool | None = False
) -> Survey:
    """Encode all rows of data.train once, and keep those that are asked for and the worst.

    Args:
        recipe: its model (the tokenizer alone is read) and its data.
        first: the first row to show, counted from 1 through all files.
        count: how many from there; fewer, or none, at the end.
        pairs: as for `convert_sides`.

    Raises:
        CheckpointError: there is no tokenizer.
        DataError: a source cannot be read, or a row cannot be used and `bad_rows` is "fail".
    """
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    template = template_for(tokenizer, recipe.data.layout)
    check_roles(recipe.data.roles)
    surveyor = _Surveyor(recipe, template, byte_ids(tokenizer))
    chosen: list[_Met] = []
    for number, (entry, format) in enumerate(rows_of(recipe.data), start=1):
        if isinstance(entry, BadRow):
            surveyor.refuse(entry)
            continue
        surveyor.formats.setdefault(entry.file, format.name)
        try:
            columns, roles = recipe.data.columns, recipe.data.roles
            sides = convert_sides(entry, format, columns, roles, pairs=pairs)
            met = surveyor.meet(number, entry, format.name, sides)
        except RowError as error:
            surveyor.refuse(error.bad)
        except TemplateError as error:
            start = excerpt(str(dict(entry)))
            surveyor.refuse(BadRow(entry.file, entry.line, "", str(error), start))
        else:
            if first <= number < first + count:
                chosen += met
    return Survey(
        template=dict(template.description),
        report=surveyor.report(),
        chosen=tuple(_show(met, tokenizer) for met in chosen),
        worst={
            name: tuple(_show(met, tokenizer) for met in surveyor.worst(name)) for name in _WORST
        },
        bad_rows=tuple(surveyor.bad_rows),
    )


def _show(met: _Met, tokenizer: Any) -> ShownRow:
    return show_row(
        met.whole,
        met.fitted,
        tokenizer,
        place=met.place,
        format=met.format,
        fate=_FATES[met.fate],
        number=met.number,
        num_byte_tokens=met.num_byte_tokens,
    )


def byte_ids(tokenizer: Any) -> frozenset[int]:
    """Find the tokens that are one byte of a character that the vocabulary lacks."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return frozenset(index for index, token in enumerate(tokens) if _BYTE.fullmatch(str(token)))
