"""Rows -> what is wrong with them; and a copy without those that teach nothing."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glmtune.conversation import Conversation
from glmtune.data.encode import BATCH_CHARS, BATCH_ROWS, DETECT_ROWS, fit, split_data
from glmtune.data.formats import Format, check_roles, convert_sides, detect
from glmtune.data.lint.findings import CHECKS, Fault, Finding, Severity, check_off
from glmtune.data.lint.report import LintReport
from glmtune.data.lint.texts import TextCheck, around, find_same_answers, text_checks
from glmtune.data.lint.tokens import Lengths, find_token_faults
from glmtune.data.lint.twins import Twins, can_find_near
from glmtune.data.rows import BadRow, Row, RowError
from glmtune.data.sources import find_source
from glmtune.errors import DataError, OutputError, TemplateError
from glmtune.files import explain_write_error
from glmtune.recipe.sections import DataSection, LintSection
from glmtune.template.base import Example, Template

Progress = Callable[[int], None]


def lint_data(
    data: DataSection,
    template: Template | None = None,
    lint: LintSection | None = None,
    *,
    seed: int = 42,
    pairs: bool | None = False,
    general: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> LintReport:
    """Find what is wrong with the rows of a recipe. Reads them once and changes nothing.

    Args:
        data: which rows, and how training would read them.
        template: makes the ids; without one the checks of tokens are left out, and lengths
            are in characters.
        lint: which checks, and from where on they speak up.
        seed: training.seed, which decides what data.eval_fraction holds out.
        pairs: whether rows are a better and a worse answer, and both are looked at; None: where
            their format has two.
        general: checks.general_rows, which show what is forgotten and so must not be learned.
        progress: is told how many rows are done.

    Raises:
        DataError: a file cannot be used as a whole. A single bad row is a finding.
        RecipeError: `lint.off` names a check that does not exist, or must look.
    """
    check_roles(data.roles)
    check_off(lint or LintSection())
    tell = progress or (lambda num_rows: None)
    scan = _Scan(data, template, lint or LintSection(), pairs, tell)
    for source in data.train:
        scan.read(source, is_held_out=False)
    if data.replayed is not None:
        scan.mix_in(data.replayed)
    for source in data.eval:
        scan.read(source, is_held_out=True)
    scan.hold_against(data.with_rows(general))
    return scan.report(seed)


def write_clean_copy(data: DataSection, report: LintReport, path: Path) -> tuple[int, int]:
    """Write the rows of data.train to a new JSON-lines file, without those not worth keeping.

    Left out are rows that cannot be used, and those of the checks that say so in `CHECKS`:
    duplicates, empty answers, rows with nothing learned. No word of the others is changed.

    Args:
        data: what was checked.
        report: of these rows.
        path: a file that does not exist yet.

    Returns:
        How many rows were written, and how many left out.

    Raises:
        OutputError: the file exists, or cannot be written.
        DataError: the files have different formats, which one file cannot have; or a row holds
            what JSON cannot.
    """
    check_copy(path)
    formats = {name for file, name in report.formats.items() if file not in report.other_files}
    if len(formats) > 1:
        raise DataError(
            f"the files are of formats {', '.join(sorted(formats))}, and one file has one format. "
            "Clean them one by one."
        )
    left_out = {
        finding.row
        for finding in report.findings
        if not finding.is_held_out and (CHECKS[finding.check].is_dropped or not finding.is_usable)
    }
    partial = path.with_name(f".{path.name}.partial")
    num_written = num_rows = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for num_rows, entry in enumerate(_all_entries(data), start=1):
                if num_rows not in left_out and isinstance(entry, Row):
                    file.write(_as_json(entry) + "\n")
                    num_written += 1
        check_copy(path)  # again: the rows took a while
        partial.rename(path)
    except OSError as error:
        raise OutputError(explain_write_error(path, error)) from error
    finally:
        partial.unlink(missing_ok=True)
    return num_written, num_rows - num_written


def check_copy(path: Path) -> None:
    """Refuse to write over anything.

    Raises:
        OutputError: there is something of that name, or no folder for it.
    """
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path}: exists already, and is not written over. Choose another name.")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {str(path.parent)!r}. Make it first.")
    if path.suffix != ".jsonl":
        raise OutputError(f"{path}: expected a name that ends in .jsonl, a row per line.")


def _as_json(row: Row) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{row.file}:{row.line}: cannot be written as JSON: {error}. Convert that column."
        ) from error


# --- Reading ------------------------------------------------------------------------------

_Entry = Row | BadRow


class _Read(NamedTuple):
    """A row, its number, and the conversation that it is, or the two sides of a pair."""

    row: Row
    number: int
    sides: tuple[Conversation, ...]

    @property
    def rejected(self) -> str:
        """The worse answer, if there is one."""
        return self.sides[1].messages[-1].content if len(self.sides) == 2 else ""


def _entries(source: str, split: str | None) -> Iterator[_Entry]:
    """Read rows, the bad ones in their place."""
    bad: list[BadRow] = []
    for row in find_source(source, split=split).rows(bad.append):
        yield from bad
        bad.clear()
        yield row
    yield from bad


def _all_entries(data: DataSection) -> Iterator[_Entry]:
    return itertools.chain.from_iterable(_entries(source, data.split) for source in data.train)


# What the readers of rows say of them -> the check that it belongs to; else it is unreadable.
_TOLD = (
    ("answer is empty", "empty-answer"),
    ("is the chosen answer again", "same-answers"),
    ("no turn is an answer", "no-label"),
    ("(The turns, from 0:", "role-order"),
    ("the turn is from", "role-order"),
    ("is not UTF-8", "encoding"),
    ("surrogate pair", "encoding"),
    ("null byte", "encoding"),
)


_NEEDS_RENSA = (
    "needs the package rensa: pip install 'glmtune[lint]'; leaks are found by equal prompts only"
)

# What may be just what makes an answer the worse one.
_FINE_IF_REJECTED = ("refusal", "language-mix")


def _check_of(bad: BadRow) -> str:
    return next((check for told, check in _TOLD if told in bad.reason), "unreadable")


def _first_fault(id: str, find: TextCheck, sides: Sequence[Conversation]) -> Fault | None:
    """Look at a row, and where it is a pair at its worse answer as well."""
    if fault := find(sides[0]):
        return fault
    worse = sides[1:] if id not in _FINE_IF_REJECTED else ()
    return next((_of_rejected(fault) for side in worse if (fault := find(side))), None)


def _of_rejected(fault: Fault) -> Fault:
    return replace(fault, message=f"the rejected answer: {fault.message}")


class _Scan:
    """Reads sources one after the other and keeps of each row what is needed to name it."""

    def __init__(
        self,
        data: DataSection,
        template: Template | None,
        lint: LintSection,
        pairs: bool | None,
        progress: Progress,
    ) -> None:
        self._data = data
        self._pairs = pairs
        self._template = template
        self._lint = lint
        self._progress = progress
        self._checks = {id: check for id, check in text_checks(lint).items() if id not in lint.off}
        self._formats: dict[str, str] = {}
        self._other_files: set[str] = set()
        self._num_own = 0  # of the rows that can be used, those of data.train
        self._findings: list[Finding] = []
        self._num_rows = {False: 0, True: 0}
        self._is_held_out = False
        self._lengths: list[int] = []
        # of the rows that can be used, in order
        self._twins = Twins()
        self._places: list[tuple[str, int, int]] = []  # file, line, number
        self._excerpts: list[str] = []
        self._is_eval: list[bool] = []
        self._is_kept: list[bool] = []  # by training
        self._is_pair: list[bool] = []

    def mix_in(self, replayed: DataSection) -> None:
        """Look at the general rows, which are read in their own way."""
        own, self._data = self._data, replayed
        for source in replayed.train:
            self.read(source, is_held_out=False, is_own=False)
        self._data = own

    def hold_against(self, general: DataSection) -> None:
        """Look at general rows that are not to be learned, which are read in their own way."""
        own, self._data = self._data, general
        for source in general.train:
            self.read(source, is_held_out=True)
        self._data = own

    def read(self, source: str, *, is_held_out: bool, is_own: bool = True) -> None:
        """Look at all rows of a source; each of its files has its own format."""
        self._is_held_out = is_held_out
        entries = _entries(source, self._data.split)
        for file, entries_of_file in itertools.groupby(entries, key=lambda entry: entry.file):
            head = list(itertools.islice(entries_of_file, DETECT_ROWS))
            rows = [entry for entry in head if isinstance(entry, Row)]
            if not rows:
                raise RowError(next(entry for entry in head if isinstance(entry, BadRow)))
            format = detect(rows, self._data.format, self._data.columns)
            self._formats.setdefault(file, format.name)
            if is_held_out or not is_own:
                self._other_files.add(file)
            for batch in self._batches(itertools.chain(head, entries_of_file), format):
                self._look(batch)
                self._progress(sum(self._num_rows.values()))
        if is_own and not is_held_out:
            self._num_own = len(self._is_kept)

    def report(self, seed: int) -> LintReport:
        """Compare the rows with each other, and put everything in order."""
        self._compare(seed)
        not_checked = dict.fromkeys(self._lint.off, "switched off by lint.off")
        if not can_find_near():
            not_checked.setdefault("near-duplicate", _NEEDS_RENSA)
        if self._template is None:
            tokens = [check.id for check in CHECKS.values() if check.needs_model]
            not_checked |= dict.fromkeys(tokens, "needs a tokenizer, and no model was given")
        ids = list(CHECKS)
        self._findings.sort(key=lambda f: (ids.index(f.check), f.is_held_out, f.row))
        is_tokens = self._template is not None
        limit = self._data.max_length if is_tokens else None
        return LintReport(
            findings=tuple(self._findings),
            num_rows=self._num_rows[False],
            num_eval_rows=self._num_rows[True],
            formats=self._formats,
            other_files=frozenset(self._other_files),
            lengths=Lengths(self._lengths, "tokens" if is_tokens else "characters", limit),
            checked=tuple(check for check in CHECKS if check not in not_checked),
            not_checked=not_checked,
        )

    def _batches(self, entries: Iterable[_Entry], format: Format) -> Iterator[list[_Read]]:
        batch: list[_Read] = []
        num_chars = 0
        for entry in entries:
            self._num_rows[self._is_held_out] += 1
            number = self._num_rows[self._is_held_out]
            if isinstance(entry, BadRow):
                self._refuse(entry, number)
                continue
            try:
                columns, roles = self._data.columns, self._data.roles
                sides = convert_sides(entry, format, columns, roles, pairs=self._pairs)
            except RowError as error:
                self._refuse(error.bad, number)
                continue
            batch.append(_Read(entry, number, sides))
            num_chars += sum(len(message.content) for side in sides for message in side)
            if len(batch) == BATCH_ROWS or num_chars >= BATCH_CHARS:
                yield batch
                batch, num_chars = [], 0
        if batch:
            yield batch

    def _refuse(self, bad: BadRow, number: int) -> None:
        severity: Severity = "error" if self._data.bad_rows == "fail" else "warning"
        field = f"field {bad.field!r}: " if bad.field else ""
        fault = Fault(severity, f"{field}{bad.reason}", bad.excerpt)
        place = (bad.file, bad.line, number)
        self._tell(_check_of(bad), place, fault, self._is_held_out, is_usable=False)

    def _tell(
        self,
        check: str,
        place: tuple[str, int, int],
        fault: Fault,
        is_held_out: bool,
        other: str = "",
        is_usable: bool = True,
    ) -> None:
        if check in self._lint.off:
            if is_usable:
                return
            check = "unreadable"
        file, line, number = place
        told = (fault.severity, file, line, number, is_held_out, fault.message, fault.excerpt)
        self._findings.append(Finding(check, *told, other, is_usable))

    # --- One row --------------------------------------------------------------------------

    def _look(self, batch: Sequence[_Read]) -> None:
        usable = self._look_at_tokens(batch)
        for row, number, sides in usable:
            place = (row.file, row.line, number)
            for id, find in self._checks.items():
                if fault := _first_fault(id, find, sides):
                    self._tell(id, place, fault, self._is_held_out)
            if len(sides) == 2 and (fault := find_same_answers(*sides)):
                self._tell("same-answers", place, fault, self._is_held_out)
            self._places.append(place)
            question = next((m.content for m in sides[0] if m.role != "system"), "")
            self._excerpts.append(around(question, 0, 0))
            self._is_eval.append(self._is_held_out)
            self._is_pair.append(len(sides) == 2)
        if usable:
            self._twins.add([read.sides[0] for read in usable], [read.rejected for read in usable])

    def _look_at_tokens(self, batch: Sequence[_Read]) -> Sequence[_Read]:
        """Check the ids; gives the rows that can be encoded."""
        if self._template is None:
            for read in batch:
                self._add_length(max(sum(len(m.content) for m in side) for side in read.sides))
            self._is_kept += [True] * len(batch)
            return batch
        usable: list[_Read] = []
        for read, examples in zip(batch, self._examples(batch), strict=True):
            if examples is not None and self._fit(read, examples):
                usable.append(read)
        return usable

    def _add_length(self, length: int) -> None:
        if not self._is_held_out:
            self._lengths.append(length)

    def _examples(self, batch: Sequence[_Read]) -> Sequence[Sequence[Example] | None]:
        """Encode all at once; if that fails, one by one to find the rows at fault."""
        assert self._template is not None
        try:
            encoded = iter(self._template.encode_batch([s for read in batch for s in read.sides]))
            return [[next(encoded) for _ in read.sides] for read in batch]
        except TemplateError:
            return [self._encode(read) for read in batch]

    def _encode(self, read: _Read) -> Sequence[Example] | None:
        assert self._template is not None
        try:
            return [self._template.encode(side) for side in read.sides]
        except TemplateError as error:
            self._refuse_row(read, error)
            return None

    def _refuse_row(self, read: _Read, error: TemplateError) -> None:
        row, number, sides = read
        start = around(sides[0].messages[0].content, 0, 0)
        self._refuse(BadRow(row.file, row.line, "", str(error), start), number)

    def _fit(self, read: _Read, examples: Sequence[Example]) -> bool:
        """Check what training makes of a row's examples; False if it cannot be used."""
        assert self._template is not None
        row, number, sides = read
        limit, overlong = self._data.max_length, self._data.overlong
        try:
            fits = [
                fit(example, side, self._template, limit, overlong)
                for side, example in zip(sides, examples, strict=True)
            ]
        except TemplateError as error:
            self._refuse_row(read, error)
            return False
        self._add_length(max(len(example.input_ids) for example in examples))
        self._is_kept.append(all(fitted is not None for fitted, _ in fits))
        found: dict[str, Fault] = {}
        for index, (side, example, fitted_as) in enumerate(zip(sides, examples, fits, strict=True)):
            stop_ids = self._template.stop_ids
            for check, fault in find_token_faults(side, example, *fitted_as, limit, stop_ids):
                found.setdefault(check, _of_rejected(fault) if index else fault)
        for check, fault in found.items():
            self._tell(check, (row.file, row.line, number), fault, self._is_held_out)
        return True

    # --- Rows beside each other -----------------------------------------------------------

    def _compare(self, seed: int) -> None:
        is_eval = np.array(self._is_eval, dtype=bool)
        if self._data.eval_fraction:
            is_kept = np.flatnonzero(self._is_kept[: self._num_own])
            if len(is_kept):
                _, held_out = split_data(is_kept, self._data.eval_fraction, seed)
                is_eval[is_kept[held_out]] = True
        for twin in self._twins.find(is_eval, self._lint):
            if twin.check == "contradiction" and self._is_pair[twin.row]:
                continue  # several answers to one question are compared two by two
            file, line, _ = self._places[twin.other]
            fault = Fault(twin.fault.severity, twin.fault.message, self._excerpts[twin.row])
            is_held_out = self._is_eval[twin.row]
            place = self._places[twin.row]
            self._tell(twin.check, place, fault, is_held_out, other=f"{file}:{line}")
