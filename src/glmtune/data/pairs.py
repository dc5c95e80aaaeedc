"""Rows with a better answer and a worse one -> pairs of examples, which stay together.

    on disk       better 0   worse 0   better 1   worse 1
    pairs[0]      better 0                             what proofs, reports and prompts look at
    a pack        better 0   worse 0 | better 1   worse 1

A pair is left out as a whole: when one of the two is too long, or cannot be used.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glmtune.data.batches import Examples, MicroBatch, micro_batch_of
from glmtune.data.encode import (
    BATCH_ROWS,
    CODE,
    EncodeOptions,
    Fate,
    RowEncoder,
    cannot_encode,
    fit,
)
from glmtune.data.formats import Format, check_roles, convert_pair
from glmtune.data.packing import pack
from glmtune.data.rows import Row, RowError
from glmtune.data.store import EncodedData, Progress, code_digests, encode_sources
from glmtune.errors import TemplateError
from glmtune.template.base import Example, Template

_Read = tuple[Row, tuple[Example, Example]]


class Pairs(EncodedData):
    """Pairs on disk; `pairs[i]` is the better side of one, and `pairs.worse(i)` the other.

    Attributes:
        lengths: ids of both sides together, int64, (pairs,).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lengths: npt.NDArray[np.int64] = self.lengths.reshape(-1, 2).sum(axis=1)

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
    """Put pairs end to end, the better side of each before the worse one."""
    assert isinstance(examples, Pairs)
    return micro_batch_of(
        pack([side for row in rows for side in (examples[row], examples.worse(row))]), rows
    )


def encode_pairs(
    sources: str | Path | Sequence[str | Path],
    template: Template,
    options: EncodeOptions,
    *,
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> Pairs:
    """Encode the pairs of files, folders and hub ids, or find them encoded.

    Args:
        sources, template, options, cache_dir, quarantine, progress: as for `encode_data`.

    Raises:
        DataError, OutputError: as `encode_data`.
    """
    check_roles(options.roles)
    found = encode_sources(
        sources,
        lambda writer, bad_rows: _PairEncoder(template, options, writer, bad_rows),
        decides=[
            template.fingerprint,
            dataclasses.asdict(options),
            code_digests(*CODE, sys.modules[__name__]),
        ],
        split=options.split,
        cache_dir=cache_dir,
        quarantine=quarantine,
        progress=progress,
    )
    pairs = Pairs(found.folder)
    pairs.report = found.report
    return pairs


class _PairEncoder(RowEncoder):
    """Encodes pairs."""

    def _batches(self, rows: Iterable[Row], format: Format) -> Iterator[list[_Read]]:
        batch: list[_Read] = []
        for row in rows:
            if pair := self._pair(row, format):
                batch.append((row, pair))
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch

    def _encode_batch(self, batch: Sequence[_Read]) -> None:
        self.write(
            [row for row, _ in batch for _ in range(2)],
            [side for _, pair in batch for side in pair],
        )

    def _pair(self, row: Row, format: Format) -> tuple[Example, Example] | None:
        """Encode both sides of a row; None where it is left out."""
        options = self._options
        try:
            talks = convert_pair(row, format, options.columns, options.roles)
            examples = self._template.encode_batch(talks)
        except RowError as error:
            self.refuse(error.bad)
            return None
        except TemplateError as error:
            self.refuse(cannot_encode(row, error))
            return None
        self.counts["num_rows"] += 1
        longest = max(len(example.input_ids) for example in examples)
        self.counts["longest"] = max(self.counts["longest"], longest)
        for talk, example in zip(talks, examples, strict=True):
            _, fate = fit(example, talk, self._template, options.max_length, "drop")
            if fate is not Fate.WHOLE:
                self.counts[fate] += 1
                return None
        better, worse = examples
        return better, worse
