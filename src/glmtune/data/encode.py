"""Rows -> encoded examples."""

import dataclasses
import itertools
import json
import random
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

import glmtune.conversation
import glmtune.data.formats
import glmtune.data.json_rows
import glmtune.data.rows
import glmtune.data.sources
import glmtune.data.table_rows
import glmtune.data.text_files
import glmtune.template.base
import glmtune.template.chat_template
import glmtune.template.chatglm
from glmtune.conversation import Conversation
from glmtune.data.formats import Format, check_roles, convert, detect
from glmtune.data.rows import BadRow, Row, RowError, excerpt
from glmtune.data.sources import Source
from glmtune.data.store import EncodedData, Encoder, Progress, code_digests, encode_sources
from glmtune.errors import TemplateError
from glmtune.recipe.choices import BadRows, Overlong
from glmtune.template.base import IGNORE, Example, Template

# What is encoded by one call and written as one Arrow record batch: so many rows, or fewer
# long ones.
BATCH_ROWS = 2000
BATCH_CHARS = 4_000_000
DETECT_ROWS = 100  # of each file; its format is found by them
_Read = tuple[Row, Conversation]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How rows become examples.

    Attributes:
        max_length: the most ids an example may have.
        overlong: what becomes of longer rows. `drop` leaves them out; `truncate_prompt`
            shortens what is before the answer, which stays whole with its end; `tutorial`
            cuts off everything behind `max_length`, so that the model does not learn to
            stop there. All are counted.
        bad_rows: `fail` stops at the first row that cannot be used, `skip` writes such rows
            to a quarantine file and goes on.
        format: the name of the rows' format; None finds it by the columns of each file.
        columns: our field -> their column.
        roles: their role -> ours.
        split: of sources that have splits.
    """

    max_length: int
    overlong: Overlong = "drop"
    bad_rows: BadRows = "fail"
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None


def encode_data(
    sources: str | Path | Sequence[str | Path],
    template: Template,
    options: EncodeOptions,
    *,
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> EncodedData:
    """Encode the rows of files, folders and hub ids, or find them encoded.

    Args:
        sources: as for `read_rows`; of one path, or of each of several.
        template: makes the ids and labels.
        options: what is read, and what becomes of long and bad rows.
        cache_dir: where to keep the result; by default $GLMTUNE_CACHE, $XDG_CACHE_HOME/glmtune
            or ~/.cache/glmtune.
        quarantine: the file to list bad rows in, when they are skipped.
        progress: is told how many rows are done; by default a terminal shows it.

    Raises:
        DataError: a source cannot be read, a row cannot be used (unless they are skipped), or
            no row is left to learn from.
        OutputError: the cache or the quarantine file cannot be written.
    """
    check_roles(options.roles)
    return encode_sources(
        sources,
        lambda writer, bad_rows: _Encoder(template, options, writer, bad_rows),
        decides=[template.fingerprint, dataclasses.asdict(options), code_digests(*CODE)],
        split=options.split,
        cache_dir=cache_dir,
        quarantine=quarantine,
        progress=progress,
    )


def split_data(
    examples: Sized, held_out: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold some examples out of training; the same ones for the same seed and number.

    Args:
        examples: only their number counts.
        held_out: a share below 1, or how many; never less than one example.
        seed: decides which.

    Returns:
        The indices to learn and those held out, both in order.
    """
    count = len(examples)
    num_held_out = min(count, max(1, round(held_out * count if held_out < 1 else held_out)))
    chosen = np.zeros(count, dtype=bool)
    chosen[random.Random(seed).sample(range(count), num_held_out)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


# A change to any of these may change what a row becomes, so they are part of the key.
CODE = (
    glmtune.conversation,
    glmtune.data.rows,
    glmtune.data.sources,
    glmtune.data.text_files,
    glmtune.data.json_rows,
    glmtune.data.table_rows,
    glmtune.data.formats,
    glmtune.template.base,
    glmtune.template.chatglm,
    glmtune.template.chat_template,
    sys.modules[__name__],
)


class Fate(StrEnum):
    """What becomes of a row by its length; the values are the counts of `EncodeReport`."""

    WHOLE = "whole"
    CUT = "num_cut"
    SHORTENED = "num_shortened"
    OVERLONG = "num_overlong"
    WITHOUT_LABELS = "num_without_labels"


def fit(
    example: Example,
    conversation: Conversation,
    template: Template,
    max_length: int,
    overlong: Overlong,
) -> tuple[Example | None, Fate]:
    """Make an example fit, or leave it out: None when it is left out.

    Args:
        example: the whole conversation encoded.
        conversation: what it was encoded from, to be shortened and encoded anew.
        template: that encoded it.
        max_length: in tokens.
        overlong: what becomes of a longer example.

    Raises:
        TemplateError: the conversation cannot be shortened by this template.
    """
    fate, fitted = Fate.WHOLE, example
    if len(example.input_ids) > max_length:
        if overlong == "tutorial":
            fate = Fate.CUT
            fitted = Example(example.input_ids[:max_length], example.labels[:max_length])
        else:
            shorter = (
                template.shorten_prompt(conversation, max_length)
                if overlong == "truncate_prompt"
                else None
            )
            if shorter is None:
                return None, Fate.OVERLONG
            fate, fitted = Fate.SHORTENED, shorter
    if fitted.labels.count(IGNORE) == len(fitted.labels):
        return None, Fate.WITHOUT_LABELS
    return fitted, fate


class RowEncoder(Encoder):
    """Encodes rows by a template, file by file; what a row becomes is for those derived to say."""

    def __init__(
        self, template: Template, options: EncodeOptions, writer: Any, bad_rows: TextIO
    ) -> None:
        super().__init__(options.max_length, options.bad_rows, writer, bad_rows)
        self._template = template
        self._options = options

    def encode(self, source: Source, progress: Progress) -> None:
        """Encode all rows of a source; each of its files has its own format."""
        for name, rows in itertools.groupby(source.rows(self.refuse), key=lambda row: row.file):
            first = list(itertools.islice(rows, DETECT_ROWS))
            format = detect(first, self._options.format, self._options.columns)
            self.files.setdefault(name, format.name)
            for batch in self._batches(itertools.chain(first, rows), format):
                self._encode_batch(batch)
                progress(self.counts["num_rows"])

    @abstractmethod
    def _batches(self, rows: Iterable[Row], format: Format) -> Iterator[list[Any]]:
        """Read rows, some at a time, and refuse those that cannot be read."""

    @abstractmethod
    def _encode_batch(self, batch: Sequence[Any]) -> None:
        """Write the examples of some rows."""


class _Encoder(RowEncoder):
    """Encodes conversations."""

    def _batches(self, rows: Iterable[Row], format: Format) -> Iterator[list[_Read]]:
        batch: list[_Read] = []
        num_chars = 0
        for row in rows:
            try:
                conversation = convert(row, format, self._options.columns, self._options.roles)
            except RowError as error:
                self.refuse(error.bad)
                continue
            batch.append((row, conversation))
            num_chars += sum(len(message.content) for message in conversation)
            if len(batch) == BATCH_ROWS or num_chars >= BATCH_CHARS:
                yield batch
                batch, num_chars = [], 0
        if batch:
            yield batch

    def _encode_batch(self, batch: Sequence[_Read]) -> None:
        rows: list[Row] = []
        examples: list[Example] = []
        for (row, conversation), example in zip(batch, self._examples(batch), strict=True):
            fitted = None if example is None else self._fit(row, conversation, example)
            if fitted is not None:
                rows.append(row)
                examples.append(fitted)
        if examples:
            self.write(rows, examples)

    def _examples(self, batch: Sequence[_Read]) -> Sequence[Example | None]:
        """Encode all at once; if that fails, one by one to find the rows at fault."""
        try:
            return self._template.encode_batch([conversation for _, conversation in batch])
        except TemplateError:
            examples: list[Example | None] = []
            for row, conversation in batch:
                try:
                    examples.append(self._template.encode(conversation))
                except TemplateError as error:
                    self.refuse(cannot_encode(row, error))
                    examples.append(None)
            return examples

    def _fit(self, row: Row, conversation: Conversation, example: Example) -> Example | None:
        """Do about a long example as the options say; None for what is not learned."""
        counts, options = self.counts, self._options
        counts["longest"] = max(counts["longest"], len(example.input_ids))
        try:
            fitted, fate = fit(
                example, conversation, self._template, options.max_length, options.overlong
            )
        except TemplateError as error:
            self.refuse(cannot_encode(row, error))
            return None
        counts["num_rows"] += 1
        if fate is not Fate.WHOLE:
            counts[fate] += 1
        return fitted


def cannot_encode(row: Row, error: TemplateError) -> BadRow:
    """Say that a row cannot be rendered by the template."""
    start = excerpt(json.dumps(row, ensure_ascii=False, default=str))
    return BadRow(row.file, row.line, "", str(error), start)
