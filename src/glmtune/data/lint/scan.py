"""Read rows once, apply every check to them, and keep what is needed to compare them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from glmtune.conversation import Conversation
from glmtune.data.cache import Progress
from glmtune.data.dataset import Dataset, batched, conversation_chars
from glmtune.data.encode import cannot_encode, split_data
from glmtune.data.fit import encode_each, example_of, fit
from glmtune.data.formats import convert_sides
from glmtune.data.lint.findings import CHECKS, Fault, Finding
from glmtune.data.lint.habits import Habits
from glmtune.data.lint.labels import Labels
from glmtune.data.lint.remnants import remnant_checks
from glmtune.data.lint.report import LintReport
from glmtune.data.lint.texts import TextCheck, around, find_same_answers, text_checks
from glmtune.data.lint.tokens import Lengths, find_token_faults
from glmtune.data.lint.tools import tool_checks
from glmtune.data.lint.twins import Twins, can_find_near
from glmtune.data.rows import BadRow, Row
from glmtune.data.sources import find_sources, first_rows_of
from glmtune.errors import TemplateError
from glmtune.recipe.sections import DataSection, LintSection
from glmtune.recipe.sources import SourceSection
from glmtune.template.base import Example, Template, is_learned

# Faults that may be the reason why an answer is the worse one.
_ALLOWED_IF_REJECTED = (
    "refusal", "language-mix", "tool-call", "repetition", "continued", "markup", "advertising",
)  # fmt: skip

_NEEDS_RENSA = (
    "needs the package rensa: pip install 'glmtune[lint]'; leaks are found by equal prompts only"
)


class _Place(NamedTuple):
    """Where a row comes from: its number counts through all files, of `train` or of `eval`."""

    file: str
    line: int
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def _of_all(paths: Sequence[str | SourceSection]) -> _Place:
    """Return the place of a fault that is of no row, but of all of them."""
    return _Place(", ".join(map(str, paths)), 1, 0)


class _NumberedRow(NamedTuple):
    """A row that can be used: one conversation, or the two sides of a pair."""

    row: Row
    number: int
    sides: tuple[Conversation, ...]

    @property
    def place(self) -> _Place:
        return _Place(self.row.file, self.row.line, self.number)

    @property
    def rejected(self) -> str:
        """The worse answer, if there is one; for a row with a label, what tells it from others."""
        if len(self.sides) == 2:
            return self.sides[1].messages[-1].content
        return "bad" if self.sides[0].is_good is False else ""


class Scan:
    """Reads sections of rows in turn and collects findings.

    Args:
        template: makes the ids; None skips the checks of tokens.
        lint: which checks, and their thresholds.
        pairs: as for `lint_data`.
        progress: called with the number of rows done.
        labels: collects those of rows; None where rows have none.
    """

    def __init__(
        self,
        template: Template | None,
        lint: LintSection,
        pairs: bool | None,
        progress: Progress,
        labels: Labels | None = None,
    ) -> None:
        self._pairs = pairs
        self._labels = labels
        self._template = template
        self._lint = lint
        self._progress = progress
        checks = {**text_checks(lint), **remnant_checks(), **tool_checks()}
        self._checks = {id: check for id, check in checks.items() if id not in lint.off}
        self._formats: dict[str, str] = {}
        self._other_files: set[str] = set()
        self._num_own = 0  # of the rows that can be used, those of data.train
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._num_rows = {False: 0, True: 0}
        self._is_held_out, self._is_own = False, True
        self._first_rows: dict[str, int] = {}  # of keys that nothing reads
        self._lengths: list[int] = []
        # of the rows that can be used, in order
        self._twins = Twins()
        self._habits = Habits()
        self._places: list[_Place] = []
        self._excerpts: list[str] = []
        self._is_eval: list[bool] = []
        self._is_kept: list[bool] = []  # by training
        self._is_pair: list[bool] = []

    def read(
        self,
        section: DataSection,
        paths: Sequence[str | SourceSection],
        *,
        is_held_out: bool = False,
        is_own: bool = True,
        most_rows: int | None = None,
    ) -> None:
        """Check all rows of some paths.

        Args:
            section: how they are read.
            paths: files, folders or hub ids.
            is_held_out: whether they are for evaluation and not learned.
            is_own: whether they are rows of data.train or data.eval, not general rows.
            most_rows: of each source that are checked; None for all.
        """
        self._is_held_out, self._is_own = is_held_out, is_own
        num_before, num_usable = self._num_rows[is_held_out], len(self._is_kept)
        is_streamed = section.streaming and is_own and not is_held_out
        sources = find_sources(paths, split=section.split, streaming=is_streamed)
        if most_rows is not None:
            sources = first_rows_of(sources, most_rows)
        dataset = Dataset(sources, section, needs_label=self._needs_label)
        self._notes += [note for note in dataset.left_out if note not in self._notes]
        self._first_rows.clear()
        rows = self._usable_rows(dataset, section)
        for batch in batched(rows, lambda numbered: conversation_chars(numbered.sides)):
            self._check(batch, section)
            self._progress(sum(self._num_rows.values()))
        if paths and not any(self._is_kept[num_usable:]):
            self._add_nothing_left(paths, self._num_rows[is_held_out] - num_before)
        if self._template is not None and self._template.reads_thoughts():
            dataset.notes.drop_thoughts()
        for key, first in dataset.notes.unread.items():
            place = _Place(first.file, first.line, self._first_rows[key])
            self._add("unused-key", place, Fault("warning", first.describe(key), ""))
        for file, format in dataset.formats.items():
            self._formats.setdefault(file, format)
        if is_held_out or not is_own:
            self._other_files.update(dataset.formats)
        else:
            self._num_own = len(self._is_kept)

    def report(self, section: DataSection, seed: int) -> LintReport:
        """Compare the rows with each other, and sort all findings.

        Args:
            section: `data` of the recipe.
            seed: decides what `data.eval_fraction` holds out.
        """
        self._compare(section.eval_fraction, seed)
        for check, row, fault in self._habits.find():
            self._add(check, self._places[row], fault, is_held_out=False)
        if self._labels and (unbalanced := self._labels.balance()):
            self._add("labels", _of_all(section.train), unbalanced, is_held_out=False)
        not_checked = dict.fromkeys(self._lint.off, "switched off by lint.off")
        if not can_find_near():
            not_checked.setdefault("near-duplicate", _NEEDS_RENSA)
        if self._template is None:
            tokens = [check.id for check in CHECKS.values() if check.needs_model]
            not_checked |= dict.fromkeys(tokens, "needs a tokenizer, and no model was given")
        ids = list(CHECKS)
        self._findings.sort(key=lambda f: (ids.index(f.check), f.is_held_out, f.row))
        is_tokens = self._template is not None
        limit = section.max_length if is_tokens else None
        return LintReport(
            findings=tuple(self._findings),
            num_rows=self._num_rows[False],
            num_eval_rows=self._num_rows[True],
            formats=self._formats,
            other_files=frozenset(self._other_files),
            lengths=Lengths(self._lengths, "tokens" if is_tokens else "characters", limit),
            checked=tuple(check for check in CHECKS if check not in not_checked),
            not_checked=not_checked,
            notes=tuple(self._notes),
        )

    def _add_nothing_left(self, paths: Sequence[str | SourceSection], num_rows: int) -> None:
        why = (
            f"of {num_rows:,} rows none is left to learn from" if num_rows else "there are no rows"
        )
        self._add("nothing-left", _of_all(paths), Fault("error", why, ""), is_usable=False)

    def _usable_rows(self, dataset: Dataset, section: DataSection) -> Iterator[_NumberedRow]:
        pairs = self._pairs if self._is_own else False  # general rows have plain answers
        to_sides = partial(convert_sides, pairs=pairs, needs_label=self._needs_label)
        for entry in dataset.read(to_sides):
            self._num_rows[self._is_held_out] += 1
            number = self._num_rows[self._is_held_out]
            if len(dataset.notes.unread) > len(self._first_rows):
                self._first_rows |= dict.fromkeys(
                    dataset.notes.unread.keys() - self._first_rows.keys(), number
                )
            if isinstance(entry, BadRow):
                self._refuse(entry, number, section)
            else:
                yield _NumberedRow(entry.row, number, entry.value)

    @property
    def _needs_label(self) -> bool:
        return self._labels is not None and self._is_own

    def _refuse(self, bad: BadRow, number: int, section: DataSection) -> None:
        """Report a row that cannot be used; an error where training would stop at it."""
        is_skipped = bad.can_be_skipped(section.bad_rows)
        fault = Fault("warning" if is_skipped else "error", bad.message, bad.excerpt)
        # A row that cannot be used is always reported, under another id where its check is off.
        check = "unreadable" if bad.check in self._lint.off else bad.check
        self._add(check, _Place(bad.file, bad.line, number), fault, is_usable=False)

    def _add(
        self,
        check: str,
        place: _Place,
        fault: Fault,
        *,
        is_held_out: bool | None = None,
        other: str = "",
        is_usable: bool = True,
    ) -> None:
        if check in self._lint.off:
            return
        self._findings.append(
            Finding(
                check=check,
                severity=fault.severity,
                file=place.file,
                line=place.line,
                row=place.number,
                is_held_out=self._is_held_out if is_held_out is None else is_held_out,
                message=fault.message,
                excerpt=fault.excerpt,
                other=other,
                is_usable=is_usable,
            )
        )

    # --- One row --------------------------------------------------------------------------

    def _check(self, batch: Sequence[_NumberedRow], section: DataSection) -> None:
        usable = self._check_tokens(batch, section)
        for row in usable:
            for id, find in self._checks.items():
                if fault := _first_fault(id, find, row.sides):
                    self._add(id, row.place, fault)
            if len(row.sides) == 2 and (fault := find_same_answers(*row.sides)):
                self._add("same-answers", row.place, fault)
            if self._is_own and not self._is_held_out:
                self._habits.add(len(self._places), row.sides[0])
            self._check_label(row)
            self._places.append(row.place)
            question = next((m.content for m in row.sides[0] if m.role != "system"), "")
            self._excerpts.append(around(question, 0, 0))
            self._is_eval.append(self._is_held_out)
            self._is_pair.append(len(row.sides) == 2 or row.sides[0].is_good is not None)
        if usable:
            self._twins.add([row.sides[0] for row in usable], [row.rejected for row in usable])

    def _check_label(self, row: _NumberedRow) -> None:
        if self._labels is None or row.sides[0].is_good is None:
            return
        is_learned = not self._is_held_out
        if found := self._labels.add(row.sides[0], str(row.place), is_learned=is_learned):
            fault, other = found
            self._add("labels", row.place, fault, other=other)

    def _check_tokens(
        self, batch: Sequence[_NumberedRow], section: DataSection
    ) -> Sequence[_NumberedRow]:
        """Check the ids; return the rows that can be encoded."""
        if self._template is None:
            for row in batch:
                self._add_length(max(sum(len(m.content) for m in side) for side in row.sides))
            self._is_kept += [
                all(any(map(is_learned, side)) for side in row.sides) for row in batch
            ]
            return batch
        encoded = iter(encode_each(self._template, [side for row in batch for side in row.sides]))
        usable: list[_NumberedRow] = []
        for row in batch:
            of_row = [next(encoded) for _ in row.sides]
            try:
                examples = [example_of(encoding) for encoding in of_row]
                self._check_fit(row, examples, self._template, section)
            except TemplateError as error:
                self._refuse(cannot_encode(row.row, error), row.number, section)
            else:
                usable.append(row)
        return usable

    def _add_length(self, length: int) -> None:
        if not self._is_held_out:
            self._lengths.append(length)

    def _check_fit(
        self,
        row: _NumberedRow,
        examples: Sequence[Example],
        template: Template,
        section: DataSection,
    ) -> None:
        """Check what training makes of a row's examples.

        Raises:
            TemplateError: the row cannot be shortened.
        """
        limit = section.max_length
        fits = [
            fit(example, side, template, limit, section.overlong)
            for side, example in zip(row.sides, examples, strict=True)
        ]
        self._add_length(max(len(example.input_ids) for example in examples))
        self._is_kept.append(all(fitted is not None for fitted, _ in fits))
        found: dict[str, Fault] = {}
        for index, (side, example, (fitted, fate)) in enumerate(
            zip(row.sides, examples, fits, strict=True)
        ):
            faults = find_token_faults(side, example, fitted, fate, limit, template.stop_ids)
            for check, fault in faults:
                found.setdefault(check, _of_rejected(fault) if index else fault)
        for check, fault in found.items():
            self._add(check, row.place, fault)

    # --- Pairs of rows --------------------------------------------------------------------

    def _compare(self, eval_fraction: float, seed: int) -> None:
        is_eval = np.array(self._is_eval, dtype=bool)
        if eval_fraction:
            is_kept = np.flatnonzero(self._is_kept[: self._num_own])
            if len(is_kept):
                _, held_out = split_data(is_kept, eval_fraction, seed)
                is_eval[is_kept[held_out]] = True
        for twin in self._twins.find(is_eval, self._lint):
            if twin.check == "contradiction" and self._is_pair[twin.row]:
                continue  # several pairs may share a question
            file, line, _ = self._places[twin.other]
            is_held_out = self._is_eval[twin.row]
            fault = replace(twin.fault, excerpt=self._excerpts[twin.row])
            if twin.check == "leak" and not is_held_out:
                # A random split can only leak rows that are alike; duplicates are warnings too.
                fault = replace(fault, severity="warning")
            self._add(
                twin.check,
                self._places[twin.row],
                fault,
                is_held_out=is_held_out,
                other=f"{file}:{line}",
            )


def _first_fault(id: str, find: TextCheck, sides: Sequence[Conversation]) -> Fault | None:
    """Check a row; of a pair, check the worse answer too."""
    if sides[0].is_good is False and id in _ALLOWED_IF_REJECTED:
        return None
    if fault := find(sides[0]):
        return fault
    worse = sides[1:] if id not in _ALLOWED_IF_REJECTED else ()
    return next((_of_rejected(fault) for side in worse if (fault := find(side))), None)


def _of_rejected(fault: Fault) -> Fault:
    return replace(fault, message=f"the rejected answer: {fault.message}")
