"""Encoded examples on disk, memory-mapped.

    <cache>/data/<key>/examples.arrow    ids, learned spans, file and line
                      bad_rows.jsonl    rows that could not be used, and why
                      about.json        the report, and checksums of the others

A million examples take no more memory than those in use. Labels are the ids where something is
learned, so only the borders of those spans are stored:

    input_ids   64790 64792 64795 30910 13 36474 64796 30910 13 36474 2
    labels        .     .     .     .    .   .     .   30910 13 36474 2     learned = [7, 11]
"""

import copy
import hashlib
import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glmtune.files import sha256_of_file, sha256_of_text
from glmtune.template.base import IGNORE, Example

ABOUT, EXAMPLES, BAD_ROWS = "about.json", "examples.arrow", "bad_rows.jsonl"
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "learned": pa.list_(pa.int32()),  # start and end of each learned span, in turn
        "file": pa.int32(),  # an index of about.json's "files"
        "line": pa.int64(),
        "is_good": pa.bool_(),  # null where rows have no label
        "weights": pa.list_(pa.float32()),  # of each id; null where all are 1
        "prompt_length": pa.int32(),  # null where the prompt is not learned
    }
)


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What became of the rows.

    Attributes:
        num_rows: rows that were read.
        num_examples: examples that are learned; a pair has two.
        num_bad_rows: rows that could not be used.
        num_overlong: rows left out because they are too long.
        num_without_labels: rows left out because nothing in them is learned.
        num_shortened: examples whose prompt was shortened.
        num_cut: examples that were cut off.
        num_tokens: ids in all examples.
        num_learned_tokens: labels in all examples.
        longest: ids of the longest row, before it was cut or shortened.
        max_length: the option.
        formats: the format of each file.
        quarantine: the file that lists the bad rows, if there are any.
        unread: keys of rows that nothing reads -> how many rows have them, and the first one.
        num_marked_bad: rows whose label says that their answer is a bad one; it is not learned.
    """

    num_rows: int = 0
    num_examples: int = 0
    num_bad_rows: int = 0
    num_overlong: int = 0
    num_without_labels: int = 0
    num_shortened: int = 0
    num_cut: int = 0
    num_tokens: int = 0
    num_learned_tokens: int = 0
    longest: int = 0
    max_length: int = 0
    formats: Mapping[str, str] = field(default_factory=dict)
    quarantine: str | None = None
    unread: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    num_marked_bad: int = 0

    def __str__(self) -> str:
        formats = ", ".join(sorted(set(self.formats.values())))
        parts = [
            f"{self.num_rows:,} rows ({formats}) gave {self.num_examples:,} examples of "
            f"{self.num_tokens:,} tokens, {self.num_learned_tokens:,} of them learned; "
            f"the longest row has {self.longest:,} tokens"
        ]
        too_long = f"longer than {self.max_length:,} tokens"
        counts = (
            (self.num_overlong, f"left out: {too_long}"),
            (self.num_without_labels, f"left out: nothing in them is learned{self._marked_bad}"),
            (self.num_shortened, f"with a shortened prompt: {too_long}"),
            (self.num_cut, f"cut off, their end with them: {too_long}"),
            (self.num_bad_rows, f"left out as bad, listed in {self.quarantine}"),
        )
        for count, what in counts:
            if count:
                parts.append(f"{count:,} {'row' if count == 1 else 'rows'} {what}")
        for key, found in self.unread.items():
            rows = "1 row" if found["rows"] == 1 else f"{found['rows']:,} rows"
            parts.append(f"{key!r} is not read (in {rows}, first {found['first']})")
        return "; ".join(parts) + "."

    @property
    def _marked_bad(self) -> str:
        count = self.num_marked_bad
        return f", {count:,} of them because label or kto_tag is false" if count else ""


class EncodedData:
    """Examples on disk; `data[i]` reads one.

    Attributes:
        key: the hash of everything that decided them, the code that read them included.
        earlier_key: the key that `glmtune.data.earlier_keys` describes.
        report: what became of the rows.
        source_counts: the examples of each source, which follow each other.
        lengths: ids of each example, int64, (examples,).
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        for name, digest in about["sha256"].items():
            if sha256_of_file(folder / name) != digest:
                raise ValueError(f"{name} is damaged")
        self.folder = folder
        self.key = folder.name
        self.earlier_key: str = about["earlier_key"]
        self.source_counts: list[int] = about["source_counts"]
        self.report = EncodeReport(**about["report"])
        self._files: list[str] = about["files"]
        reader = pa.ipc.open_file(pa.memory_map(str(folder / EXAMPLES)))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._batches = [_Batch(batch) for batch in batches]
        self._starts: list[int] = [0, *itertools.accumulate(batch.num_rows for batch in batches)]
        self.lengths: npt.NDArray[np.int64] = np.concatenate(
            [np.diff(batch.offsets) for batch in self._batches]
        ).astype(np.int64)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        batch, row = self._find(index)
        ids: list[int] = batch.ids[batch.offsets[row] : batch.offsets[row + 1]].tolist()
        borders = batch.borders[batch.border_offsets[row] : batch.border_offsets[row + 1]].tolist()
        labels = [IGNORE] * len(ids)
        for start, end in zip(borders[::2], borders[1::2], strict=True):
            labels[start:end] = ids[start:end]
        return Example(ids, labels, batch.label(row), batch.weights(row), batch.prompt_length(row))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def followed_by(self, others: "EncodedData") -> "EncodedData":
        """Concatenate these examples and others; `report` still describes only these."""
        both = copy.copy(self)
        both.key = _join_keys(self.key, others.key)
        both.earlier_key = _join_keys(self.earlier_key, others.earlier_key)
        moved = [copy.copy(batch) for batch in others._batches]
        for batch in moved:
            batch.files = batch.files + len(self._files)
        both._files = [*self._files, *others._files]
        both._batches = [*self._batches, *moved]
        both._starts = [*self._starts, *(len(self) + start for start in others._starts[1:])]
        both.lengths = np.concatenate([self.lengths, others.lengths])
        return both

    @property
    def fingerprint(self) -> str:
        """A hash of the examples themselves: ids, learned spans, file and line of each.

        Unlike `key` it does not depend on the code that made them, nor on how they are split
        into record batches, so a checkpoint can be resumed after an update of this package that
        encodes the rows as before. Reads all examples.
        """
        return sha256_of_text(json.dumps([self._files, *self._column_digests]))

    @property
    def content_fingerprint(self) -> str:
        """The same without the names of files, which may be spelled in another way."""
        return sha256_of_text(json.dumps(self._column_digests))

    @property
    def _column_digests(self) -> list[str]:
        columns = [hashlib.sha256() for _ in range(6)]
        for batch in self._batches:
            for column, values in zip(columns, batch.columns(), strict=True):
                column.update(np.ascontiguousarray(values).data)
        more: dict[str, Any] = {}
        for batch in self._batches:
            for name, values in batch.more_columns().items():
                more.setdefault(name, hashlib.sha256(name.encode())).update(values.tobytes())
        columns += [more[name] for name in sorted(more)]
        return [column.hexdigest() for column in columns]

    @property
    def num_learned_tokens(self) -> int:
        """Labels in all examples."""
        return self.report.num_learned_tokens

    @property
    def labels(self) -> npt.NDArray[np.bool_] | None:
        """Whether the answer of each example is a good one, (examples,); None without labels."""
        parts = [batch.labels for batch in self._batches if batch.labels is not None]
        return np.concatenate(parts) if len(parts) == len(self._batches) else None

    @property
    def learned_lengths(self) -> npt.NDArray[np.int64]:
        """Labels of each example, int64, (examples,)."""
        return np.concatenate([batch.learned_lengths() for batch in self._batches])

    def origin(self, index: int) -> str:
        """Where an example comes from, as `file:line`."""
        batch, row = self._find(index)
        return f"{self._files[batch.files[row]]}:{batch.lines[row]}"

    def _find(self, index: int) -> tuple["_Batch", int]:
        number = self._starts[-1]
        if not -number <= index < number:
            raise IndexError(f"example {index} of {number}")
        index %= number
        batch_index = bisect_right(self._starts, index) - 1
        return self._batches[batch_index], index - self._starts[batch_index]


class _Batch:
    """Views of the columns of one record batch; pages are read when they are used."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        ids, borders = batch.column("input_ids"), batch.column("learned")
        self.ids: npt.NDArray[np.int32] = ids.values.to_numpy()
        self.offsets: npt.NDArray[np.int32] = ids.offsets.to_numpy()
        self.borders: npt.NDArray[np.int32] = borders.values.to_numpy()
        self.border_offsets: npt.NDArray[np.int32] = borders.offsets.to_numpy()
        self.files: npt.NDArray[np.int32] = batch.column("file").to_numpy()
        self.lines: npt.NDArray[np.int64] = batch.column("line").to_numpy()
        self.labels = _labels_of(batch.column("is_good"))
        self._weights = _if_any(batch.column("weights"))
        self._prompts = _if_any(batch.column("prompt_length"))

    def weights(self, row: int) -> list[float] | None:
        weights: list[float] | None = (
            self._weights[row].as_py() if self._weights is not None else None
        )
        return weights

    def prompt_length(self, row: int) -> int | None:
        length: int | None = self._prompts[row].as_py() if self._prompts is not None else None
        return length

    def label(self, row: int) -> bool | None:
        return None if self.labels is None else bool(self.labels[row])

    def learned_lengths(self) -> npt.NDArray[np.int64]:
        spans = self.borders[1::2] - self.borders[::2]
        before = np.concatenate([[0], np.cumsum(spans, dtype=np.int64)])
        return np.diff(before[self.border_offsets // 2])

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Everything in it, in a form that joins with that of the next batch."""
        lengths, num_borders = np.diff(self.offsets), np.diff(self.border_offsets)
        return self.ids, lengths, self.borders, num_borders, self.files, self.lines

    def more_columns(self) -> dict[str, npt.NDArray[Any]]:
        """What only some data sets have, by name; rows without a weight have NaN."""
        found: dict[str, npt.NDArray[Any]] = {}
        if self.labels is not None:
            found["labels"] = self.labels
        if self._weights is not None:
            parts = [self.weights(row) or [math.nan] for row in range(len(self.lines))]
            found["weights"] = np.array([w for part in parts for w in part], dtype=np.float32)
        if self._prompts is not None:
            found["prompts"] = self._prompts.to_numpy(zero_copy_only=False)
        return found


def _if_any(column: pa.Array) -> pa.Array | None:
    return None if column.null_count == len(column) else column


def _labels_of(column: pa.Array) -> npt.NDArray[np.bool_] | None:
    """Return the labels of rows; None where they have none."""
    if column.null_count:
        return None
    labels: npt.NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return labels


def _join_keys(first: str, second: str) -> str:
    return sha256_of_text(f"{first} {second}")
