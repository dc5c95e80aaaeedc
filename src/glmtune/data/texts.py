"""Files of plain text -> windows of token ids, kept on disk and memory-mapped.

A document is a row with a `text`: of JSON Lines, JSON, Parquet, Arrow, CSV, or a paragraph of a
text file (lines up to the next empty one). It is encoded once, written as it is read, and cut
into windows, so a corpus may be larger than memory:

    document   t1 t2 t3 t4 t5 t6 t7          max_length = 6
    windows    t1 t2 t3 t4 | t5 t6 t7 </s>   two ids are kept free for what goes before them

The last window of a document ends with `</s>`; the others have no end token. What a window
becomes (which part is shown and which is learned) is decided by the objective, each time the
window is sampled.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glmtune.data.cache import Progress, encode_sources
from glmtune.data.dataset import batched
from glmtune.data.earlier_keys import TEXTS_CODE
from glmtune.data.encode import READERS
from glmtune.data.fit import Fate
from glmtune.data.rows import BadRow, OnBad, Row, raise_bad_row, row_excerpt
from glmtune.data.sources import AnySource, Source, find_sources
from glmtune.data.store import EncodedData
from glmtune.data.writer import ExampleWriter
from glmtune.errors import DataError
from glmtune.files import sha256_of_text
from glmtune.recipe.choices import BadRows
from glmtune.template.base import Example

NUM_BEFORE = 2  # [gMASK] and sop come before a text
LEAST_LENGTH = 16  # of a window; fewer tokens teach nothing


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How texts become windows.

    Attributes:
        max_length: the most ids a window has, including the `NUM_BEFORE` before it.
        column: of a row, which holds the text.
        bad_rows: as for `EncodeOptions`.
        split: of sources that have splits.
    """

    max_length: int
    column: str = "text"
    bad_rows: BadRows = "fail"
    split: str | None = None


def encode_texts(
    sources: AnySource | Sequence[AnySource],
    tokenizer: Any,
    options: TextOptions,
    *,
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> EncodedData:
    """Encode texts, or open what an earlier run has encoded. Every token of a window is learned.

    Args:
        sources: files, folders and hub ids, as for `read_rows`.
        tokenizer: makes the ids.
        options: which column, and how long a window is.
        cache_dir, quarantine, progress: as for `encode_data`.

    Raises:
        DataError, OutputError: as `encode_data`; or the windows would be too short.
    """
    room = options.max_length - NUM_BEFORE
    if room < LEAST_LENGTH:
        raise DataError(
            f"data.max_length={options.max_length} leaves a window of {room} tokens; "
            f"expected at least {LEAST_LENGTH + NUM_BEFORE}, and 256 or more to be useful."
        )
    return encode_sources(
        sources,
        partial(_write_windows, tokenizer, options),
        options,
        EncodedData,
        fingerprint=tokenizer_fingerprint(tokenizer),
        code=(*READERS, sys.modules[__name__]),
        earlier_code=TEXTS_CODE,
        cache_dir=cache_dir,
        quarantine=quarantine,
        progress=progress,
    )


def read_texts(sources: Sequence[str | Path], column: str = "text") -> Iterator[str]:
    """Read the documents of files, folders and hub ids in order.

    Raises:
        DataError: a source cannot be read, or a row has no text.
    """
    for source in find_sources(sources):
        for _, text in documents(source.rows(), text_column(source, column), raise_bad_row):
            yield text


def text_column(source: Source, column: str) -> str:
    """Return the column of the texts of a source: its own, or that of all sources.

    Raises:
        DataError: the source has keys that texts have no use for.
    """
    own = source.own
    if own is None:
        return column
    if own.format is not None or own.roles is not None:
        raise DataError(
            f"{source.name}: a text has no format and no roles. Leave them out of that source."
        )
    return (own.columns or {}).get("text", column)


def documents(rows: Iterable[Row], column: str, refuse: OnBad) -> Iterator[tuple[Row, str]]:
    """Yield each document with its first row; lines of a text file are joined to paragraphs.

    Args:
        rows: of one source.
        column: which holds the text.
        refuse: called with a row that has no text, or half a character; it is skipped unless this
            raises.
    """
    first: Row | None = None
    lines: list[str] = []
    for row in rows:
        if first is not None and not _follows(row, first, len(lines)):
            yield first, "\n".join(lines)
            first, lines = None, []
        if (problem := _why_no_text(row, column)) is not None:
            refuse(BadRow(row.file, row.line, column, problem, row_excerpt(row)))
            continue
        first = first or row
        lines.append(str(row[column]))
    if first is not None:
        yield first, "\n".join(lines)


def _follows(row: Row, first: Row, num_lines: int) -> bool:
    is_text_file = ".txt" in Path(row.file).suffixes
    return is_text_file and (row.file, row.line) == (first.file, first.line + num_lines)


def _why_no_text(row: Row, column: str) -> str | None:
    if column not in row:
        return (
            f"there is no {column!r} in it; it has {', '.join(map(repr, row))}. Name the column "
            "that holds the text: data.columns.text=NAME in a recipe"
        )
    text = row[column]
    if not isinstance(text, str):
        return f"{column!r} holds {type(text).__name__}, expected text"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can contain it, and no tokenizer accepts it
        half = text[error.start]
        return (
            f"half of a surrogate pair, {half!r}, is not a character. Write the text again as UTF-8"
        )
    return None


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Identify a tokenizer by all of its pieces and their ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return sha256_of_text(vocabulary)


def split_documents(
    data: EncodedData, held_out: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold complete documents out of training, so that no neighbor of a held-out window is learned.

    Args:
        data: windows of texts.
        held_out: a share of the documents below 1, or how many; never less than one.
        seed: decides which.

    Returns:
        The windows to learn and those held out, both in order.
    """
    places = [data.origin(index) for index in range(len(data))]
    documents = {place: number for number, place in enumerate(dict.fromkeys(places))}
    of_window = np.array([documents[place] for place in places])
    chosen = np.zeros(len(documents), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(documents))
    num_held_out = round(held_out * len(documents) if held_out < 1 else held_out)
    chosen[order[: max(1, num_held_out)]] = True
    is_held_out = chosen[of_window]
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _write_windows(
    tokenizer: Any,
    options: TextOptions,
    sources: Sequence[Source],
    writer: ExampleWriter,
    progress: Progress,
) -> None:
    """Encode all documents of some sources, a few thousand at a time."""
    formats: dict[str, str] = {}
    writer.tally.formats = formats

    def read() -> Iterator[tuple[Row, str]]:
        for index, source in enumerate(sources):
            column = text_column(source, options.column)
            for row, text in documents(source.rows(writer.refuse), column, writer.refuse):
                row.source = index
                yield row, text

    for batch in batched(read(), lambda document: len(document[1])):
        formats.update((row.file, "text") for row, _ in batch)
        _write_batch(batch, tokenizer, options.max_length - NUM_BEFORE, writer)
        progress(writer.tally.num_rows)


def _write_batch(
    batch: Sequence[tuple[Row, str]], tokenizer: Any, room: int, writer: ExampleWriter
) -> None:
    """Cut some documents into windows of `room` ids."""
    encoded: Mapping[str, list[list[int]]] = tokenizer(
        [text for _, text in batch], add_special_tokens=False
    )
    rows: list[Row] = []
    windows: list[Example] = []
    for (row, _), ids in zip(batch, encoded["input_ids"], strict=True):
        writer.tally.add_row(len(ids), Fate.UNCUT if ids else Fate.WITHOUT_LABELS)
        if not ids:
            continue
        document = [*ids, tokenizer.eos_token_id]
        for start in range(0, len(document), room):
            window = document[start : start + room]
            if start and len(window) < LEAST_LENGTH:
                continue  # a few last tokens teach nothing without what was before them
            rows.append(row)
            windows.append(Example(window, window))
    writer.write(rows, windows)
