"""Conversations -> encoded examples on disk.

A row is read, converted, encoded by the template, fitted to `max_length`, and written. Rows go
through these steps in batches, since a tokenizer encodes many texts faster than one.
"""

import math
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

import glmtune.conversation
import glmtune.data.dataset
import glmtune.data.dataset_info
import glmtune.data.fit
import glmtune.data.folders
import glmtune.data.formats
import glmtune.data.formats.conversion
import glmtune.data.formats.detection
import glmtune.data.formats.format
import glmtune.data.formats.guess
import glmtune.data.formats.keys
import glmtune.data.formats.messages
import glmtune.data.formats.pairs
import glmtune.data.formats.question_answer
import glmtune.data.formats.roles
import glmtune.data.formats.table
import glmtune.data.formats.unread
import glmtune.data.formats.values
import glmtune.data.hubs
import glmtune.data.json_rows
import glmtune.data.json_values
import glmtune.data.learned_prompt
import glmtune.data.rows
import glmtune.data.sources
import glmtune.data.splits
import glmtune.data.store
import glmtune.data.table_rows
import glmtune.data.text_files
import glmtune.data.writer
import glmtune.template.base
import glmtune.template.chat_template
import glmtune.template.chatglm
import glmtune.template.glm
from glmtune.conversation import Conversation
from glmtune.data.cache import NEWER, Progress, encode_sources
from glmtune.data.dataset import Dataset, Entry, T, batched, conversation_chars
from glmtune.data.earlier_keys import CONVERSATIONS_CODE
from glmtune.data.fit import encode_each, example_of, fit
from glmtune.data.formats import check_roles, convert, convert_labeled
from glmtune.data.learned_prompt import LearnedPrompt
from glmtune.data.rows import BadRow, Row, RowError, row_excerpt
from glmtune.data.sources import AnySource, Source
from glmtune.data.store import EncodedData
from glmtune.data.writer import ExampleWriter, Tally
from glmtune.errors import TemplateError
from glmtune.recipe.choices import BadRows, Overlong
from glmtune.recipe.sections import DataSection
from glmtune.template.base import Example, Template

# A change to any of these may change what a row becomes, so their digests are part of the key.
READERS = (
    glmtune.data.rows,
    glmtune.data.sources,
    glmtune.data.splits,
    glmtune.data.folders,
    glmtune.data.hubs,
    glmtune.data.dataset_info,
    glmtune.data.text_files,
    glmtune.data.json_rows,
    glmtune.data.json_values,
    glmtune.data.table_rows,
    glmtune.data.store,
    glmtune.data.writer,
)
CODE = (
    *READERS,
    glmtune.conversation,
    glmtune.data.dataset,
    glmtune.data.fit,
    glmtune.data.formats,
    glmtune.data.formats.conversion,
    glmtune.data.formats.detection,
    glmtune.data.formats.format,
    glmtune.data.formats.guess,
    glmtune.data.formats.keys,
    glmtune.data.formats.messages,
    glmtune.data.formats.pairs,
    glmtune.data.formats.question_answer,
    glmtune.data.formats.roles,
    glmtune.data.formats.table,
    glmtune.data.formats.unread,
    glmtune.data.formats.values,
    glmtune.data.learned_prompt,
    glmtune.template.base,
    glmtune.template.chatglm,
    glmtune.template.chat_template,
    glmtune.template.glm,
    sys.modules[__name__],
)


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How rows become examples.

    Attributes:
        max_length: the most ids an example may have.
        overlong: what becomes of longer rows. `drop` leaves them out; `truncate_prompt`
            shortens what is before the answer, and keeps the answer with its end; `tutorial`
            cuts off everything after `max_length`, so the model does not learn to stop there.
            All are counted.
        bad_rows: `fail` stops at the first row that cannot be used; `skip` writes such rows to
            a quarantine file and continues, except where a file breaks off.
        format: the name of the rows' format; None finds it by the columns of each file.
        columns: our field -> their column.
        roles: their role -> ours.
        split: of sources that have splits.
        mask_history: whether only the last answer of a row is learned.
        needs_label: whether every row says if its answer is a good one, as for KTO.
        train_on_prompt: whether prompts are learned, too.
    """

    max_length: int
    overlong: Overlong = "drop"
    bad_rows: BadRows = "fail"
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    mask_history: bool = field(default=False, metadata=NEWER)
    needs_label: bool = field(default=False, metadata=NEWER)
    train_on_prompt: bool = field(default=False, metadata=NEWER)


def encode_data(
    sources: AnySource | Sequence[AnySource],
    template: Template,
    options: EncodeOptions,
    *,
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> EncodedData:
    """Encode the rows of files, folders and hub ids, or open what an earlier run has encoded.

    Args:
        sources: as for `read_rows`; one path, or several.
        template: makes the ids and labels.
        options: what is read, and what becomes of long and bad rows.
        cache_dir: where to keep the result; by default $GLMTUNE_CACHE, $XDG_CACHE_HOME/glmtune
            or ~/.cache/glmtune.
        quarantine: the file to list bad rows in, when they are skipped.
        progress: called with the number of rows read so far; by default a terminal shows it.

    Raises:
        DataError: a source cannot be read, a row cannot be used (unless they are skipped), or
            no row is left to learn from.
        OutputError: the cache or the quarantine file cannot be written.
    """
    check_roles(options.roles)
    learned = LearnedPrompt(template) if options.train_on_prompt else template
    return encode_sources(
        sources,
        partial(_write_examples, learned, options),
        options,
        EncodedData,
        fingerprint=template.fingerprint,
        code=CODE,
        earlier_code=CONVERSATIONS_CODE,
        cache_dir=cache_dir,
        quarantine=quarantine,
        progress=progress,
    )


def training_conversations(
    section: DataSection, template: Template, *, needs_label: bool = False
) -> Iterator[Conversation]:
    """Read the rows of `data.train` again, as the conversations that training encodes.

    Args:
        section: `data` of the recipe.
        template: of the run; rows that it cannot render were left out of training.
        needs_label: as in `EncodeOptions`.

    Raises:
        DataError: a file cannot be used at all.
        RowError: a row cannot be used, and training does not skip such rows.
    """
    read = convert_labeled if needs_label else convert
    for entry in Dataset.of(section, needs_label=needs_label).read(read):
        bad = entry if isinstance(entry, BadRow) else _check_encodes(entry, template)
        if bad is None:
            assert isinstance(entry, Entry)
            yield entry.value
        elif not bad.can_be_skipped(section.bad_rows):
            raise RowError(bad)


def _check_encodes(entry: Entry[Conversation], template: Template) -> BadRow | None:
    try:
        template.encode(entry.value)
    except TemplateError as error:
        return cannot_encode(entry.row, error)
    return None


def split_data(
    examples: Sized, held_out: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold some examples out of training; the same ones for the same seed and number.

    Args:
        examples: only their number counts.
        held_out: a share below 1, rounded up as by `datasets`, or how many; at least one example.
        seed: decides which.

    Returns:
        The indices to learn and those held out, both in order.
    """
    count = len(examples)
    num_held_out = min(count, max(1, math.ceil(held_out * count if held_out < 1 else held_out)))
    chosen = np.zeros(count, dtype=bool)
    chosen[random.Random(seed).sample(range(count), num_held_out)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def usable_entries(
    entries: Iterable[Entry[T] | BadRow], writer: ExampleWriter
) -> Iterator[Entry[T]]:
    """Yield the rows that can be used, and pass the others to `writer.refuse`."""
    for entry in entries:
        if isinstance(entry, BadRow):
            writer.refuse(entry)
        else:
            yield entry


def cannot_encode(row: Row, error: TemplateError) -> BadRow:
    """Return the bad row for a row that the template cannot render."""
    return BadRow(row.file, row.line, "", str(error), row_excerpt(row))


def _write_examples(
    template: Template,
    options: EncodeOptions,
    sources: Sequence[Source],
    writer: ExampleWriter,
    progress: Progress,
) -> None:
    """Encode all rows of some sources."""
    dataset = Dataset(sources, options, needs_label=options.needs_label)
    writer.tally.formats, writer.tally.notes = dataset.formats, dataset.notes
    read = convert_labeled if options.needs_label else convert
    entries = usable_entries(dataset.read(read), writer)
    for batch in batched(entries, lambda entry: conversation_chars([entry.value])):
        _write_batch(batch, template, options, writer)
        progress(writer.tally.num_rows)
    if template.reads_thoughts():
        dataset.notes.drop_thoughts()


def _write_batch(
    batch: Sequence[Entry[Conversation]],
    template: Template,
    options: EncodeOptions,
    writer: ExampleWriter,
) -> None:
    """Encode a batch; on return its examples are freed, before the next batch is read."""
    rows: list[Row] = []
    examples: list[Example] = []
    encoded = encode_each(template, [entry.value for entry in batch])
    for entry, encoding in zip(batch, encoded, strict=True):
        fitted = fit_entry(entry, encoding, template, options, writer)
        if fitted is not None:
            rows.append(entry.row)
            examples.append(fitted)
    writer.write(rows, examples)


class Counter(Protocol):
    """Counts rows, and decides about those that cannot be used."""

    tally: Tally

    def refuse(self, bad: BadRow) -> None:
        """Count a row that cannot be used, or raise its error."""


def fit_entry(
    entry: Entry[Conversation],
    encoding: Example | TemplateError,
    template: Template,
    options: EncodeOptions,
    writer: Counter,
) -> Example | None:
    """Count a row, and apply `overlong` to it; None for what is not learned."""
    try:
        example = example_of(encoding)
        fitted, fate = fit(example, entry.value, template, options.max_length, options.overlong)
    except TemplateError as error:
        writer.refuse(cannot_encode(entry.row, error))
        return None
    writer.tally.add_row(len(example.input_ids), fate)
    if fitted is not None and entry.value.is_good is not None:
        return replace(fitted, is_good=entry.value.is_good)
    return fitted
