"""Rows with a better answer and a worse one -> pairs of examples, which stay together.

    on disk       better 0   worse 0   better 1   worse 1
    pairs[0]      better 0                             what proofs, reports and prompts use
    a pack        better 0   worse 0 | better 1   worse 1

A pair is left out if one of the two is too long or cannot be used.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glmtune.conversation import Conversation
from glmtune.data.batches import Examples, MicroBatch, micro_batch_of
from glmtune.data.cache import Progress, encode_sources
from glmtune.data.dataset import Dataset, Entry, batched, conversation_chars
from glmtune.data.earlier_keys import PAIRS_CODE
from glmtune.data.encode import CODE, EncodeOptions, cannot_encode, usable_entries
from glmtune.data.fit import Fate, encode_each, example_of, fit
from glmtune.data.formats import check_roles, convert_pair
from glmtune.data.packing import pack
from glmtune.data.rows import Row
from glmtune.data.sources import AnySource, Source
from glmtune.data.store import EncodedData
from glmtune.data.writer import ExampleWriter
from glmtune.errors import TemplateError
from glmtune.template.base import Example, Template


class Pairs(EncodedData):
    """Pairs on disk; `pairs[i]` is the better side of one, and `pairs.worse(i)` the other.

    Attributes:
        lengths: ids of both sides together, int64, (pairs,).
        source_counts: the pairs of each source.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lengths: npt.NDArray[np.int64] = self.lengths.reshape(-1, 2).sum(axis=1)
        self.source_counts = [count // 2 for count in self.source_counts]

    def __len__(self) -> int:
        return super().__len__() // 2

    def __getitem__(self, index: int) -> Example:
        return super().__getitem__(2 * index)

    def worse(self, index: int) -> Example:
        """Read the worse side of a pair."""
        return super().__getitem__(2 * index + 1)

    @property
    def learned_lengths(self) -> npt.NDArray[np.int64]:
        """Labels of both sides together, int64, (pairs,)."""
        sums: npt.NDArray[np.int64] = super().learned_lengths.reshape(-1, 2).sum(axis=1)
        return sums

    def origin(self, index: int) -> str:
        """Where a pair comes from, as `file:line`."""
        return super().origin(2 * index)


def pack_pairs(examples: Examples, rows: Sequence[int], step: int) -> MicroBatch:
    """Pack pairs, the better side of each before the worse one."""
    assert isinstance(examples, Pairs)
    return micro_batch_of(
        pack([side for row in rows for side in (examples[row], examples.worse(row))]), rows
    )


def encode_pairs(
    sources: AnySource | Sequence[AnySource],
    template: Template,
    options: EncodeOptions,
    *,
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> Pairs:
    """Encode the pairs of files, folders and hub ids, or open what an earlier run has encoded.

    Args:
        sources, template, options, cache_dir, quarantine, progress: as for `encode_data`.

    Raises:
        DataError, OutputError: as `encode_data`.
    """
    check_roles(options.roles)
    return encode_sources(
        sources,
        partial(_write_pairs, template, options),
        options,
        Pairs,
        fingerprint=template.fingerprint,
        code=(*CODE, sys.modules[__name__]),
        earlier_code=PAIRS_CODE,
        cache_dir=cache_dir,
        quarantine=quarantine,
        progress=progress,
    )


def _write_pairs(
    template: Template,
    options: EncodeOptions,
    sources: Sequence[Source],
    writer: ExampleWriter,
    progress: Progress,
) -> None:
    """Encode the pairs of some sources."""
    dataset = Dataset(sources, options)
    writer.tally.formats, writer.tally.notes = dataset.formats, dataset.notes
    entries = usable_entries(dataset.read(convert_pair), writer)
    for batch in batched(entries, lambda entry: conversation_chars(entry.value)):
        _write_batch(batch, template, options.max_length, writer)
        progress(writer.tally.num_rows)


def _write_batch(
    batch: Sequence[Entry[tuple[Conversation, Conversation]]],
    template: Template,
    max_length: int,
    writer: ExampleWriter,
) -> None:
    rows: list[Row] = []
    examples: list[Example] = []
    encoded = encode_each(template, [side for entry in batch for side in entry.value])
    for entry, better, worse in zip(batch, encoded[::2], encoded[1::2], strict=True):
        pair = _fit_pair(entry, better, worse, template, max_length, writer)
        rows += [entry.row] * len(pair)
        examples += pair
    writer.write(rows, examples)


def _fit_pair(
    entry: Entry[tuple[Conversation, Conversation]],
    better: Example | TemplateError,
    worse: Example | TemplateError,
    template: Template,
    max_length: int,
    writer: ExampleWriter,
) -> tuple[Example, ...]:
    """Count a pair; nothing for one that is left out."""
    try:
        sides = (example_of(better), example_of(worse))
    except TemplateError as error:
        writer.refuse(cannot_encode(entry.row, error))
        return ()
    fates = [
        fit(example, conversation, template, max_length, "drop")[1]
        for example, conversation in zip(sides, entry.value, strict=True)
    ]
    fate = next((fate for fate in fates if fate is not Fate.UNCUT), Fate.UNCUT)
    writer.tally.add_row(max(len(example.input_ids) for example in sides), fate)
    return sides if fate is Fate.UNCUT else ()
