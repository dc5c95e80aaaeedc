"""Files -> encoded examples, kept on disk so that a second start finds them done.

    rows.json  ->  <cache>/data/<key>/examples.arrow    ids, learned stretches, file and line
                                      bad_rows.jsonl    what could not be used, and why
                                      about.json        the report, and checksums of the others

The key is a hash of everything that decides the result: the contents of the files, the
template's fingerprint, the options, and the code of this package that reads rows. So a
changed input finds no cache, rather than a stale one. A cache is written under another name
and renamed when it is whole; what is damaged later is found by its checksum, and made again.

The examples are memory-mapped: a million of them take no more memory than those in use.
Labels are the ids where something is learned, so only the borders of those stretches are
stored:

    input_ids   64790 64792 64795 30910 13 36474 64796 30910 13 36474 2
    labels        .     .     .     .    .   .     .   30910 13 36474 2     learned = [7, 11]
"""

import copy
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import secrets
import shutil
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glmtune.data.rows import BadRow, Row, RowError
from glmtune.data.sources import Source, find_source
from glmtune.errors import DataError, OutputError
from glmtune.gc_pause import paused
from glmtune.template.base import IGNORE, Example

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What became of the rows.

    Attributes:
        num_rows: rows that were met; the sum of the next four.
        num_examples: rows that are learned.
        num_bad_rows: rows that could not be used.
        num_overlong: rows left out because they are too long.
        num_without_labels: rows left out because nothing in them is learned.
        num_shortened: examples whose prompt was shortened.
        num_cut: examples that were cut off.
        num_tokens: ids in all examples.
        num_learned_tokens: labels in all examples.
        longest: ids of the longest row, before anything was done about it.
        max_length: the option.
        formats: the format of each file.
        quarantine: the file that lists the bad rows, if there are any.
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

    def __str__(self) -> str:
        formats = ", ".join(sorted(set(self.formats.values())))
        told = [
            f"{self.num_rows:,} rows ({formats}) gave {self.num_examples:,} examples of "
            f"{self.num_tokens:,} tokens, {self.num_learned_tokens:,} of them learned; "
            f"the longest row has {self.longest:,} tokens"
        ]
        too_long = f"longer than {self.max_length:,} tokens"
        counts = (
            (self.num_overlong, f"left out: {too_long}"),
            (self.num_without_labels, "left out: nothing in them is learned"),
            (self.num_shortened, f"with a shortened prompt: {too_long}"),
            (self.num_cut, f"cut off, their end with them: {too_long}"),
            (self.num_bad_rows, f"left out as bad, listed in {self.quarantine}"),
        )
        for count, what in counts:
            if count:
                told.append(f"{count:,} {'row' if count == 1 else 'rows'} {what}")
        return "; ".join(told) + "."


class EncodedData:
    """Examples on disk; `data[i]` reads one.

    Attributes:
        key: the hash of everything that decided them.
        report: what became of the rows.
        lengths: ids of each example, int64, (examples,).
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        for name, digest in about["sha256"].items():
            if _digest(folder / name) != digest:
                raise ValueError(f"{name} is damaged")
        self.folder = folder
        self.key = folder.name
        self.report = EncodeReport(**about["report"])
        self._files: list[str] = about["files"]
        reader = pa.ipc.open_file(pa.memory_map(str(folder / _EXAMPLES)))
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
        return Example(ids, labels)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def followed_by(self, others: "EncodedData") -> "EncodedData":
        """Give these examples with others behind them; `report` goes on telling of these alone."""
        both = copy.copy(self)
        both.key = hashlib.sha256(f"{self.key} {others.key}".encode()).hexdigest()
        moved = [copy.copy(batch) for batch in others._batches]
        for batch in moved:
            batch.files = batch.files + len(self._files)
        both._files = [*self._files, *others._files]
        both._batches = [*self._batches, *moved]
        both._starts = [*self._starts, *(len(self) + start for start in others._starts[1:])]
        both.lengths = np.concatenate([self.lengths, others.lengths])
        return both

    @property
    def num_learned_tokens(self) -> int:
        """Labels in all examples."""
        return self.report.num_learned_tokens

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
    """Views of the columns of one record batch; nothing is read before it is used."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        ids, borders = batch.column("input_ids"), batch.column("learned")
        self.ids: npt.NDArray[np.int32] = ids.values.to_numpy()
        self.offsets: npt.NDArray[np.int32] = ids.offsets.to_numpy()
        self.borders: npt.NDArray[np.int32] = borders.values.to_numpy()
        self.border_offsets: npt.NDArray[np.int32] = borders.offsets.to_numpy()
        self.files: npt.NDArray[np.int32] = batch.column("file").to_numpy()
        self.lines: npt.NDArray[np.int64] = batch.column("line").to_numpy()

    def learned_lengths(self) -> npt.NDArray[np.int64]:
        stretches = self.borders[1::2] - self.borders[::2]
        before = np.concatenate([[0], np.cumsum(stretches, dtype=np.int64)])
        return np.diff(before[self.border_offsets // 2])


def encode_sources(
    sources: str | Path | Sequence[str | Path],
    make_encoder: Callable[[Any, TextIO], "Encoder"],
    *,
    decides: Sequence[Any],
    split: str | None = None,
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> EncodedData:
    """Encode sources by any encoder, or find them encoded.

    Args:
        sources, cache_dir, quarantine, progress: as for `encode_data`.
        make_encoder: from the writer of Arrow batches and the file of bad rows.
        decides: whatever decides the result apart from the files, as JSON values.
        split: of sources that have splits.

    Raises:
        DataError, OutputError: as `encode_data`.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    found = [find_source(source, split=split) for source in sources]
    before = _stamps(found)
    key = _key(found, decides)
    folder = _data_cache(cache_dir) / key
    data = _open_cache(folder)
    if data is None:
        with _shown(progress) as shown, paused():
            data = _build(folder, found, make_encoder, shown)
        if _stamps(found) != before:
            shutil.rmtree(folder, ignore_errors=True)
            names = ", ".join(source.name for source in found)
            raise DataError(f"{names}: a file changed while it was read. Start again.")
    if data.report.num_bad_rows:
        listed = folder / _BAD_ROWS
        if quarantine is not None:
            listed = _copy(listed, Path(quarantine))
        data.report = dataclasses.replace(data.report, quarantine=str(listed))
    return data


_ABOUT, _EXAMPLES, _BAD_ROWS = "about.json", "examples.arrow", "bad_rows.jsonl"
_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "learned": pa.list_(pa.int32()),  # start and end of each learned stretch, in turn
        "file": pa.int32(),  # an index of about.json's "files"
        "line": pa.int64(),
    }
)


def _data_cache(cache_dir: str | Path | None) -> Path:
    if cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = os.environ.get("GLMTUNE_CACHE") or Path(home) / "glmtune"
    return Path(cache_dir).expanduser() / "data"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digests(*modules: ModuleType) -> list[str]:
    """Identify the code that decides what becomes of a row."""
    return [_digest(Path(str(module.__file__))) for module in (*modules, sys.modules[__name__])]


def _key(sources: Sequence[Source], decides: Sequence[Any]) -> str:
    try:
        contents = [
            # Names are in it because examples tell where they come from.
            [source.name, source.max_rows, [[str(path), _digest(path)] for path in source.files]]
            for source in sources
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}.") from error
    return hashlib.sha256(json.dumps([contents, *decides], sort_keys=True).encode()).hexdigest()


def _stamps(sources: Sequence[Source]) -> list[tuple[int, int]]:
    """What changes when a file is written to."""
    stats = [path.stat() for source in sources for path in source.files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _open_cache(folder: Path) -> EncodedData | None:
    """Open what an earlier start has left, if it is there and whole."""
    if not folder.exists():
        return None
    try:
        return EncodedData(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("the cache %s is damaged (%s); encoding again", folder, error)
        return None


def _build(
    folder: Path,
    sources: Sequence[Source],
    make_encoder: Callable[[Any, TextIO], "Encoder"],
    progress: Progress,
) -> EncodedData:
    partial = folder.with_name(f".{folder.name[:16]}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with _written(folder):
            partial.mkdir(parents=True)
            with (
                pa.OSFile(str(partial / _EXAMPLES), "wb") as examples,
                (partial / _BAD_ROWS).open("w", encoding="utf-8") as bad_rows,
                pa.ipc.new_file(examples, _SCHEMA) as writer,
            ):
                encoder = make_encoder(writer, bad_rows)
                for source in sources:
                    encoder.encode(source, progress)
            encoder.check(sources)
            about = {
                "report": dataclasses.asdict(encoder.report()),
                "files": list(encoder.files),
                "sha256": {name: _digest(partial / name) for name in (_EXAMPLES, _BAD_ROWS)},
            }
            (partial / _ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
            _commit(partial, folder)
        return EncodedData(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _commit(partial: Path, folder: Path) -> None:
    """Give a cache its name, unless another process was quicker."""
    if folder.exists() and _open_cache(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Explain why something could not be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written: {error.strerror or error}. Make room, or set "
            "GLMTUNE_CACHE to a folder that can be written and has room."
        ) from error


def _copy(source: Path, target: Path) -> Path:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{target}: could not be written: {error.strerror or error}.") from error
    return target


@contextmanager
def _shown(progress: Progress | None) -> Iterator[Progress]:
    """Show the number of rows on a terminal, unless somebody else is told it."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("Encoding rows") as status:
            yield lambda num_rows: status.update(f"Encoding rows: {num_rows:,} done")
    else:
        yield lambda num_rows: None


class Encoder(ABC):
    """Encodes sources one after the other, and counts.

    Attributes:
        files: the files that rows came from, each with its format.
    """

    def __init__(
        self, max_length: int, bad_rows: Literal["fail", "skip"], writer: Any, listed: TextIO
    ) -> None:
        self.files: dict[str, str] = {}
        self.counts = dict.fromkeys((f.name for f in dataclasses.fields(EncodeReport)), 0)
        self._max_length = max_length
        self._skips = bad_rows == "skip"
        self._writer = writer
        self._bad_rows = listed
        self._first_bad: BadRow | None = None

    @abstractmethod
    def encode(self, source: Source, progress: Progress) -> None:
        """Encode all rows of a source."""

    def report(self) -> EncodeReport:
        """Say what became of the rows so far."""
        counts: dict[str, Any] = {**self.counts, "quarantine": None}
        counts |= {"formats": self.files, "max_length": self._max_length}
        return EncodeReport(**counts)

    def check(self, sources: Sequence[Source]) -> None:
        """Refuse to go on without anything to learn.

        Raises:
            DataError: says what became of the rows.
        """
        report, names = self.report(), ", ".join(source.name for source in sources)
        if report.num_examples:
            return
        if not report.num_rows:
            raise DataError(f"{names}: there are no rows in it.")
        reasons = [
            (report.num_bad_rows, f"cannot be used, the first is {self._first_bad}"),
            (
                report.num_overlong,
                f"are longer than data.max_length={report.max_length}: raise it, up to "
                f"{report.longest} for all, or set data.overlong: truncate_prompt",
            ),
            (report.num_without_labels, "have nothing that is learned"),
        ]
        told = "; ".join(f"{count} {what}" for count, what in reasons if count)
        raise DataError(f"{names}: of {report.num_rows} rows none is left to learn from: {told}.")

    def refuse(self, bad: BadRow) -> None:
        """Stop at a row that cannot be used, or list it and go on."""
        if not self._skips:
            raise RowError(bad)
        self.counts["num_rows"] += 1
        self.counts["num_bad_rows"] += 1
        self._first_bad = self._first_bad or bad
        self._bad_rows.write(json.dumps(dataclasses.asdict(bad), ensure_ascii=False) + "\n")

    def write(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Write one Arrow batch; `rows` says where each example comes from."""
        ids, offsets = _flatten([example.input_ids for example in examples])
        labels, _ = _flatten([example.labels for example in examples])
        learned = labels != IGNORE
        assert np.array_equal(labels[learned], ids[learned])  # labels are not shifted
        borders, border_offsets = learned_borders(learned, offsets)
        numbers = {name: index for index, name in enumerate(self.files)}
        columns = [
            pa.ListArray.from_arrays(offsets, ids),
            pa.ListArray.from_arrays(border_offsets, borders),
            pa.array([numbers[row.file] for row in rows], pa.int32()),
            pa.array([row.line for row in rows], pa.int64()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self.counts["num_examples"] += len(examples)
        self.counts["num_tokens"] += len(ids)
        self.counts["num_learned_tokens"] += int(learned.sum())


def _flatten(lists: Sequence[list[int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """All numbers in a row, and where each list begins; one number more than there are lists."""
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(numbers) for numbers in lists], out=offsets[1:])
    flat = np.fromiter(itertools.chain.from_iterable(lists), np.int32, count=int(offsets[-1]))
    return flat, offsets


def learned_borders(
    learned: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Find the learned stretches of each example.

    Args:
        learned: of all tokens of all examples, (tokens,).
        offsets: where each example begins, and where the last ends, (examples + 1,).

    Returns:
        Start and end of each stretch, counted from the example's begin, and the offsets of
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
