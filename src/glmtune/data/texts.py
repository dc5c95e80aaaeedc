"""Files of plain text -> windows of token ids, kept on disk and memory-mapped.

A document is a row with a `text`: of JSON Lines, JSON, Parquet, Arrow, CSV, or a paragraph of a
text file (lines up to the next empty one). It is encoded once, written down as it is read, and
cut into windows, so a corpus may be larger than memory:

    document   t1 t2 t3 t4 t5 t6 t7          max_length = 6
    windows    t1 t2 t3 t4 | t5 t6 t7 </s>   two ids are kept free for what goes before them

The last window of a document ends with `</s>`; the others just stop. What a window becomes (which
part is shown and which is learned) is the objective's affair, anew each time that it is drawn.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt

import glmtune.data.rows
from glmtune.data.encode import BATCH_CHARS, BATCH_ROWS
from glmtune.data.rows import BadRow, Row, RowError, excerpt
from glmtune.data.sources import Source, find_source
from glmtune.data.store import EncodedData, Encoder, Progress, code_digests, encode_sources
from glmtune.errors import DataError
from glmtune.template.base import Example

NUM_BEFORE = 2  # [gMASK] and sop stand before a text
LEAST_LENGTH = 16  # of a window; less is no text


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How texts become windows.

    Attributes:
        max_length: the most ids a window has, with `NUM_BEFORE` in front of it.
        column: of a row, that holds the text.
        bad_rows: as for `EncodeOptions`.
        split: of sources that have splits.
    """

    max_length: int
    column: str = "text"
    bad_rows: Literal["fail", "skip"] = "fail"
    split: str | None = None


def encode_texts(
    sources: str | Path | Sequence[str | Path],
    tokenizer: Any,
    options: TextOptions,
    *,
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> EncodedData:
    """Encode texts, or find them encoded. Every token of a window is learned.

    Args:
        sources: files, folders and hub ids, as for `read_rows`.
        tokenizer: makes the ids.
        options: which column, and how long a window is.
        cache_dir, quarantine, progress: as for `encode_data`.

    Raises:
        DataError, OutputError: as `encode_data`.
    """
    return encode_sources(
        sources,
        lambda writer, bad_rows: _TextEncoder(tokenizer, options, writer, bad_rows),
        decides=[
            tokenizer_fingerprint(tokenizer),
            dataclasses.asdict(options),
            code_digests(glmtune.data.rows),
        ],
        split=options.split,
        cache_dir=cache_dir,
        quarantine=quarantine,
        progress=progress,
    )


def read_texts(sources: Sequence[str | Path], column: str = "text") -> Iterator[str]:
    """Read the documents of files, folders and hub ids, one after the other.

    Raises:
        DataError: a source cannot be read, or a row has no text.
    """

    def refuse(bad: BadRow) -> None:
        raise RowError(bad)

    for source in sources:
        for _, text in documents(find_source(source).rows(refuse), column, refuse):
            yield text


def documents(
    rows: Iterable[Row], column: str, refuse: Callable[[BadRow], None]
) -> Iterator[tuple[Row, str]]:
    """Give each document with its first row; lines of a text file join to paragraphs.

    Args:
        rows: of one source.
        column: that holds the text.
        refuse: is told of a row without text; what it does not raise, it skips.
    """
    first: Row | None = None
    lines: list[str] = []
    for row in rows:
        if first is not None and not _follows(row, first, len(lines)):
            yield first, "\n".join(lines)
            first, lines = None, []
        text = row.get(column)
        if not isinstance(text, str):
            refuse(_no_text(row, column))
            continue
        first = first or row
        lines.append(text)
    if first is not None:
        yield first, "\n".join(lines)


def _follows(row: Row, first: Row, num_lines: int) -> bool:
    is_text_file = ".txt" in Path(row.file).suffixes
    return is_text_file and (row.file, row.line) == (first.file, first.line + num_lines)


def _no_text(row: Row, column: str) -> BadRow:
    if column in row:
        problem = f"{column!r} holds {type(row[column]).__name__}, expected text"
    else:
        problem = (
            f"there is no {column!r} in it; it has {', '.join(map(repr, row))}. Name the column "
            "that holds the text: data.columns.text=NAME in a recipe"
        )
    start = excerpt(json.dumps(row, ensure_ascii=False, default=str))
    return BadRow(row.file, row.line, column, problem, start)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Identify a tokenizer by all of its pieces and their ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def split_documents(
    data: EncodedData, held_out: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold whole documents out of training, so that no window's neighbour is learned.

    Args:
        data: windows of texts.
        held_out: a share of the documents; never less than one.
        seed: decides which.

    Returns:
        The windows to learn and those held out, both in order.
    """
    places = [data.origin(index) for index in range(len(data))]
    documents = {place: number for number, place in enumerate(dict.fromkeys(places))}
    of_window = np.array([documents[place] for place in places])
    chosen = np.zeros(len(documents), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(documents))
    chosen[order[: max(1, round(held_out * len(documents)))]] = True
    is_held_out = chosen[of_window]
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


class _TextEncoder(Encoder):
    """Encodes documents, a few thousand at a time."""

    def __init__(self, tokenizer: Any, options: TextOptions, writer: Any, bad_rows: TextIO) -> None:
        super().__init__(options.max_length, options.bad_rows, writer, bad_rows)
        self._tokenizer = tokenizer
        self._column = options.column
        self._room = options.max_length - NUM_BEFORE
        if self._room < LEAST_LENGTH:
            raise DataError(
                f"data.max_length={options.max_length} leaves a window of {self._room} tokens; "
                f"expected at least {LEAST_LENGTH + NUM_BEFORE}, and 256 or more to be of use."
            )

    def encode(self, source: Source, progress: Progress) -> None:
        """Encode all documents of a source."""
        batch: list[tuple[Row, str]] = []
        num_chars = 0
        for row, text in documents(source.rows(self.refuse), self._column, self.refuse):
            self.files.setdefault(row.file, "text")
            batch.append((row, text))
            num_chars += len(text)
            if len(batch) == BATCH_ROWS or num_chars >= BATCH_CHARS:
                self._encode_batch(batch)
                progress(self.counts["num_rows"])
                batch, num_chars = [], 0
        if batch:
            self._encode_batch(batch)

    def _encode_batch(self, batch: Sequence[tuple[Row, str]]) -> None:
        encoded: Mapping[str, list[list[int]]] = self._tokenizer(
            [text for _, text in batch], add_special_tokens=False
        )
        rows: list[Row] = []
        windows: list[Example] = []
        for (row, _), ids in zip(batch, encoded["input_ids"], strict=True):
            self.counts["num_rows"] += 1
            self.counts["longest"] = max(self.counts["longest"], len(ids))
            if not ids:
                self.counts["num_without_labels"] += 1
                continue
            whole = [*ids, self._tokenizer.eos_token_id]
            for start in range(0, len(whole), self._room):
                window = whole[start : start + self._room]
                if start and len(window) < LEAST_LENGTH:
                    continue  # a few last tokens teach nothing without what was before them
                rows.append(row)
                windows.append(Example(window, window))
        if windows:
            self.write(rows, windows)
