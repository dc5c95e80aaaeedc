"""Write encoded examples and bad rows to files, and count what becomes of rows."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glmtune.data.fit import Fate
from glmtune.data.formats import Notes
from glmtune.data.rows import ESCAPED, BadRow, Row, RowError
from glmtune.data.store import BAD_ROWS, EXAMPLES, SCHEMA, EncodeReport
from glmtune.recipe.choices import BadRows
from glmtune.template.base import IGNORE, Example


class Tally:
    """Counts what becomes of rows; training and `glmtune inspect` count alike.

    Args:
        max_length: the limit of an example, in tokens.

    Attributes:
        formats: the format of each file.
        notes: what is to be said of rows that are read without an error.
        num_rows: rows so far, bad ones included.
        first_bad: the first row that could not be used.
    """

    def __init__(self, max_length: int) -> None:
        self.formats: Mapping[str, str] = {}
        self.notes = Notes()
        self.num_rows = 0
        self.first_bad: BadRow | None = None
        self._max_length = max_length
        self._longest = 0
        self._counts: dict[str, int] = {}

    def add_bad(self, bad: BadRow) -> None:
        """Count a row that cannot be used."""
        self.num_rows += 1
        self.first_bad = self.first_bad or bad
        self._add("num_bad_rows", 1)

    def add_row(self, num_tokens: int, fate: Fate) -> None:
        """Count a row that was encoded.

        Args:
            num_tokens: of the row before it was cut or shortened; of a pair, its longer side.
            fate: what becomes of it.
        """
        self.num_rows += 1
        self._longest = max(self._longest, num_tokens)
        if fate is not Fate.UNCUT:
            self._add(fate.value, 1)

    def add_examples(self, num_examples: int, num_tokens: int, num_learned: int) -> None:
        """Count examples that training learns, and their tokens."""
        self._add("num_examples", num_examples)
        self._add("num_tokens", num_tokens)
        self._add("num_learned_tokens", num_learned)

    def counts(self) -> dict[str, int]:
        """Return the numbers so far, for a checkpoint."""
        return {"num_rows": self.num_rows, "longest": self._longest, **self._counts}

    def restore(self, counts: Mapping[str, int]) -> None:
        """Continue counting from the numbers of a checkpoint."""
        left = dict(counts)
        self.num_rows, self._longest = left.pop("num_rows", 0), left.pop("longest", 0)
        self._counts = left

    def report(self) -> EncodeReport:
        """Return the counts so far."""
        report = EncodeReport(
            num_rows=self.num_rows,
            longest=self._longest,
            max_length=self._max_length,
            formats=self.formats,
            unread=self.notes.to_json(),
            num_marked_bad=self.notes.num_marked_bad,
        )
        counts: dict[str, Any] = self._counts
        return dataclasses.replace(report, **counts)

    def _add(self, name: str, count: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + count


class ExampleWriter:
    """Writes examples as Arrow batches and bad rows as JSON lines, and counts both.

    Args:
        max_length: the limit of an example, in tokens.
        bad_rows: whether bad rows are skipped.

    Attributes:
        tally: what became of the rows so far; its `formats` name every file with examples.
        source_counts: the number of a source -> how many examples it gave.
    """

    def __init__(self, max_length: int, bad_rows: BadRows) -> None:
        self.tally = Tally(max_length)
        self.source_counts: Counter[int] = Counter()
        self._policy = bad_rows
        self._arrow: Any = None
        self._bad_rows: TextIO | None = None

    @contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        """Open the two files in a folder."""
        with (
            pa.OSFile(str(folder / EXAMPLES), "wb") as examples,
            (folder / BAD_ROWS).open("w", encoding="utf-8", errors=ESCAPED) as self._bad_rows,
            pa.ipc.new_file(examples, SCHEMA) as self._arrow,
        ):
            yield

    def refuse(self, bad: BadRow) -> None:
        """List a row that cannot be used.

        Raises:
            RowError: bad rows are not skipped, or this one cannot be.
        """
        if not bad.can_be_skipped(self._policy):
            raise RowError(bad)
        self.tally.add_bad(bad)
        assert self._bad_rows is not None
        self._bad_rows.write(json.dumps(dataclasses.asdict(bad), ensure_ascii=False) + "\n")

    def write(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Write one Arrow batch.

        Args:
            rows: where each example comes from; their files are in `tally.formats`.
            examples: as many; may be none.
        """
        if not examples:
            return
        ids, offsets = _flatten([example.input_ids for example in examples])
        labels, _ = _flatten([example.labels for example in examples])
        learned = labels != IGNORE
        assert np.array_equal(labels[learned], ids[learned])  # labels are not shifted
        borders, border_offsets = learned_borders(learned, offsets)
        numbers = {name: index for index, name in enumerate(self.tally.formats)}
        columns = [
            pa.ListArray.from_arrays(offsets, ids),
            pa.ListArray.from_arrays(border_offsets, borders),
            pa.array([numbers[row.file] for row in rows], pa.int32()),
            pa.array([row.line for row in rows], pa.int64()),
            pa.array([example.is_good for example in examples], pa.bool_()),
            pa.array([example.weights for example in examples], pa.list_(pa.float32())),
            pa.array([example.prompt_length for example in examples], pa.int32()),
        ]
        self._arrow.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self.source_counts.update(row.source for row in rows)
        self.tally.add_examples(len(examples), len(ids), int(learned.sum()))


def _flatten(lists: Sequence[list[int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Concatenate lists; also return where each begins, and where the last one ends."""
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(numbers) for numbers in lists], out=offsets[1:])
    flat = np.fromiter(itertools.chain.from_iterable(lists), np.int32, count=int(offsets[-1]))
    return flat, offsets


def learned_borders(
    learned: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Find the learned spans of each example.

    Args:
        learned: of all tokens of all examples, (tokens,).
        offsets: where each example begins, and where the last one ends, (examples + 1,).

    Returns:
        Start and end of each span, counted from the start of the example, and the offsets of
        the examples in that list.
    """
    before = np.concatenate(([False], learned[:-1]))
    after = np.concatenate((learned[1:], [False]))
    before[offsets[:-1]] = False
    after[offsets[1:] - 1] = False
    starts, ends = np.flatnonzero(learned & ~before), np.flatnonzero(learned & ~after) + 1
    example_of = np.searchsorted(offsets, starts, side="right") - 1
    borders = np.stack((starts, ends), axis=1) - offsets[example_of, None]
    counts = np.bincount(example_of, minlength=len(offsets) - 1)
    border_offsets = np.concatenate(([0], 2 * np.cumsum(counts))).astype(np.int32)
    return borders.astype(np.int32).ravel(), border_offsets
