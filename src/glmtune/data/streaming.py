"""Examples that are encoded while a run learns them, of files or hub data sets of any size.

    data.train   a.jsonl  b.parquet  owner/name
      segment    1,000 examples, in the order of the rows, or drawn by the weights of the sources
      window     the segments of late; those before are forgotten, so memory stays flat
      head       the first segment, which stays: proofs, reports and the dry run look at it

`data[i]` is example i of a stream that begins again where its sources end. `StreamPlan` decides
which of them a step takes. A checkpoint records how many rows of each source come before a segment;
a resumed run reads past these without encoding them, and then makes the same examples again.

Bad rows are found while the run learns, not before it: with `data.bad_rows: fail` such a row ends
the run, and `skip` logs it.
"""

import logging
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import Field

from glmtune.conversation import Conversation
from glmtune.data.dataset import Dataset, Entry
from glmtune.data.encode import EncodeOptions, fit_entry
from glmtune.data.fit import encode_each
from glmtune.data.formats import Format, convert
from glmtune.data.learned_prompt import LearnedPrompt
from glmtune.data.rows import BadRow, Row, RowError
from glmtune.data.sources import Source, find_sources
from glmtune.data.store import EncodeReport
from glmtune.data.writer import Tally
from glmtune.errors import DataError
from glmtune.files import sha256_of_text
from glmtune.recipe.sources import SourceSection
from glmtune.template.base import IGNORE, Example, Template

logger = logging.getLogger(__name__)

SEGMENT = 1_000  # examples; also the number of rows that lint and the proofs look at
_Count = Annotated[int, Field(ge=0)]
MOST_LOGGED = 100  # bad rows


@dataclass(frozen=True, slots=True)
class StreamCursor:
    """Where a segment begins, as a checkpoint records it.

    Attributes:
        segment: its number.
        rows: of each source, how many rows of its current pass come before.
        passes: how often each source has come to its end.
        counts: what became of the rows so far, as `Tally.counts`.
    """

    segment: _Count
    rows: tuple[_Count, ...]
    passes: tuple[_Count, ...]
    counts: Mapping[str, _Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An example in little memory, and where it comes from."""

    ids: npt.NDArray[np.int32]
    is_learned: npt.NDArray[np.bool_]
    weights: list[float] | None
    prompt_length: int | None
    file: str
    line: int

    @classmethod
    def of(cls, example: Example, row: Row) -> "_Encoded":
        ids = np.array(example.input_ids, dtype=np.int32)
        is_learned = np.array(example.labels) != IGNORE
        return cls(ids, is_learned, example.weights, example.prompt_length, row.file, row.line)

    def example(self) -> Example:
        labels = np.where(self.is_learned, self.ids, IGNORE).tolist()
        return Example(self.ids.tolist(), labels, None, self.weights, self.prompt_length)


class _Encoder:
    """Encodes rows as `encode_data` does, and counts what becomes of them."""

    def __init__(self, template: Template, options: EncodeOptions) -> None:
        self.template: Template = LearnedPrompt(template) if options.train_on_prompt else template
        self.options = options
        self.tally = Tally(options.max_length)
        self._num_logged = 0

    def refuse(self, bad: BadRow) -> None:
        """Count and log a row that cannot be used.

        Raises:
            RowError: bad rows are not skipped, or this one cannot be.
        """
        if not bad.can_be_skipped(self.options.bad_rows):
            raise RowError(bad)
        self.tally.add_bad(bad)
        self._num_logged += 1
        if self._num_logged <= MOST_LOGGED:
            logger.warning("left out: %s", bad)

    def encode(self, entries: Sequence[Entry[Conversation]]) -> list[_Encoded]:
        """Encode rows, and leave out those that are too long or teach nothing."""
        encoded: list[_Encoded] = []
        encodings = encode_each(self.template, [entry.value for entry in entries])
        for entry, encoding in zip(entries, encodings, strict=True):
            example = fit_entry(entry, encoding, self.template, self.options, self)
            if example is not None:
                encoded.append(_Encoded.of(example, entry.row))
        tokens = sum(len(each.ids) for each in encoded)
        learned = sum(int(each.is_learned.sum()) for each in encoded)
        self.tally.add_examples(len(encoded), tokens, learned)
        return encoded


class _Stream:
    """The examples of some sources, one after the other and again from the start.

    Args:
        sources: read in order.
        encoder: of all streams.
        rows, passes: where to begin, as in a cursor.

    Attributes:
        rows, passes: where it is.
        num_new: of the examples taken last, how many were of the first pass.
    """

    def __init__(
        self, sources: Sequence[Source], encoder: _Encoder, rows: int = 0, passes: int = 0
    ) -> None:
        self._sources, self._encoder = sources, encoder
        self._is_skipping = False
        self._found_any = bool(rows or passes)
        self.rows, self.passes, self.num_new = rows, passes, 0
        self._entries = self._open()
        self._skip(rows)

    def take(self, number: int) -> list[_Encoded]:
        """Return the next examples.

        Raises:
            DataError: the sources give none at all, or a file or a row cannot be used.
        """
        taken: list[_Encoded] = []
        self.num_new = 0
        while len(taken) < number:
            wanted = number - len(taken)
            entries = list(islice(self._entries, wanted))
            self.rows += len(entries)
            good: list[Entry[Conversation]] = []
            for entry in entries:
                if isinstance(entry, BadRow):
                    self._encoder.refuse(entry)
                else:
                    good.append(entry)
            found = self._encoder.encode(good)
            taken += found
            self.num_new += len(found) if not self.passes else 0
            self._found_any = self._found_any or bool(found)
            if len(entries) < wanted:
                self._begin_again()
        return taken

    def _begin_again(self) -> None:
        names = ", ".join(source.name for source in self._sources)
        if not self._found_any:
            raise DataError(
                f"{names}: none of {self.rows:,} rows gives an example to learn "
                f"({self._encoder.tally.report()}) Raise data.max_length, or mend the rows; "
                "`glmtune lint` shows what is wrong with them."
            )
        if not self.passes:  # a small source beside a large one does so often
            logger.info("%s: all %d rows were read, and they begin again", names, self.rows)
        self.rows, self.passes = 0, self.passes + 1
        self._entries = self._open()

    def _open(self) -> Iterator[Entry[Conversation] | BadRow]:
        dataset = Dataset(self._sources, self._encoder.options)
        self._encoder.tally.formats = dataset.formats
        self._encoder.tally.notes = dataset.notes
        return dataset.read(self._convert)

    def _convert(
        self, row: Row, format: Format, columns: Mapping[str, str], roles: Mapping[str, str]
    ) -> Conversation:
        return _SKIPPED if self._is_skipping else convert(row, format, columns, roles)

    def _skip(self, number: int) -> None:
        self._is_skipping = True
        num_skipped = sum(1 for _ in islice(self._entries, number))
        self._is_skipping = False
        if num_skipped < number:
            names = ", ".join(source.name for source in self._sources)
            raise DataError(
                f"{names}: has {num_skipped:,} rows, and a checkpoint was written after "
                f"{number:,}. Restore the rows, or start a new run in another output.dir."
            )


_SKIPPED = Conversation(())


class StreamedData:
    """Examples by their place in the stream; only those of late can be read, and the first ones.

    Args:
        sources: as in `data.train`.
        template: makes the ids and labels.
        options: what is read, and what becomes of long and bad rows.
        seed: decides the order of sources that have weights.
        weights: of each source, where they differ: how likely the next example is one of it.

    Raises:
        DataError: a source cannot be read, or a row among the first cannot be used.

    Attributes:
        head: the first examples, each once; they can always be read.
        earlier_key: as in `EncodedData`; there is none.
    """

    earlier_key = ""
    labels = None  # of rows for KTO, which are not streamed

    def __init__(
        self,
        sources: Sequence[str | SourceSection],
        template: Template,
        options: EncodeOptions,
        *,
        seed: int,
        weights: Sequence[float] = (),
    ) -> None:
        found = find_sources(sources, split=options.split, streaming=True)
        for source in found:
            if source.left_out:
                logger.info("%s", source.left_out)
        self._weights = list(weights)
        self._groups = [[source] for source in found] if weights else [found]
        self._encoder = _Encoder(template, options)
        self._seed = seed
        self._sizes = [path.stat().st_size for source in found for path in source.files]
        self._num_kept = 2
        self._segments: dict[int, list[_Encoded]] = {}
        self._cursors: dict[int, StreamCursor] = {}
        self._next = 0
        self._streams = [_Stream(group, self._encoder) for group in self._groups]
        self.head: Sequence[int] = self._load_next()
        self._first = self._segments[0]
        self.lengths: Sequence[int] = _Numbers(self, learned=False)
        self.learned_lengths: Sequence[int] = _Numbers(self, learned=True)

    def __len__(self) -> int:
        """The number of examples so far."""
        return self._next * SEGMENT

    def __getitem__(self, index: int) -> Example:
        return self._find(index).example()

    def origin(self, index: int) -> str:
        """Where an example comes from, as `file:line`."""
        found = self._find(index)
        return f"{found.file}:{found.line}"

    def count(self, index: int, *, learned: bool) -> int:
        """Count the tokens of an example, or those that are learned."""
        found = self._find(index)
        return int(found.is_learned.sum()) if learned else len(found.ids)

    @property
    def report(self) -> EncodeReport:
        """What became of the rows so far."""
        return self._encoder.tally.report()

    @property
    def num_learned_tokens(self) -> int:
        """Labels in all examples so far."""
        return self.report.num_learned_tokens

    @property
    def fingerprint(self) -> str:
        """A hash of the first examples with their places, and of the sizes of local files."""
        places = [f"{each.file}:{each.line}" for each in self._first]
        return sha256_of_text(f"{self.content_fingerprint} {places}")

    @property
    def content_fingerprint(self) -> str:
        """The same without places, which may be spelled in another way."""
        parts = [(each.ids.tolist(), each.is_learned.tolist()) for each in self._first]
        return sha256_of_text(f"{parts} {self._sizes}")

    def keep(self, num_examples: int) -> None:
        """Keep so many of the last examples."""
        self._num_kept = -(-num_examples // SEGMENT) + 1

    def cursor_before(self, index: int) -> StreamCursor:
        """Return where to begin reading, to have the example and all after it."""
        segment = index // SEGMENT
        while self._next < segment:
            self._load_next()
        return self._here() if segment == self._next else self._cursors[segment]

    def seek(self, cursor: StreamCursor) -> None:
        """Continue where a checkpoint was written.

        Raises:
            DataError: there are other sources, or they have fewer rows than then.
        """
        if not len(cursor.rows) == len(cursor.passes) == len(self._groups):
            raise DataError(
                f"data.train has {len(self._groups)} streams, and the checkpoint was written with "
                f"{len(cursor.rows)}. Restore the sources, or start a new run in another "
                "output.dir."
            )
        self._segments.clear()
        self._cursors.clear()
        self._next = cursor.segment
        places = zip(self._groups, cursor.rows, cursor.passes, strict=True)
        self._streams = [_Stream(group, self._encoder, *place) for group, *place in places]
        self._encoder.tally.restore(cursor.counts)

    def _find(self, index: int) -> _Encoded:
        segment, place = divmod(index, SEGMENT)
        if segment == 0:
            return self._first[place]
        while self._next <= segment:
            self._load_next()
        return self._segments[segment][place]

    def _here(self) -> StreamCursor:
        return StreamCursor(
            self._next,
            tuple(stream.rows for stream in self._streams),
            tuple(stream.passes for stream in self._streams),
            self._encoder.tally.counts(),
        )

    def _load_next(self) -> list[int]:
        """Encode the next segment, and forget the oldest one.

        Returns:
            The places in it of the examples of a first pass.
        """
        self._cursors[self._next] = self._here()
        chosen = [0] * SEGMENT
        if self._weights:
            numbers = range(len(self._streams))
            generator = random.Random(f"{self._seed} {self._next}")
            chosen = generator.choices(numbers, self._weights, k=SEGMENT)
        taken = [
            deque(enumerate(stream.take(chosen.count(number))))
            for number, stream in enumerate(self._streams)
        ]
        placed = [(number, *taken[number].popleft()) for number in chosen]
        self._segments[self._next] = [encoded for _, _, encoded in placed]
        self._next += 1
        for old in [number for number in self._segments if number < self._next - self._num_kept]:
            del self._segments[old], self._cursors[old]
        new = [stream.num_new for stream in self._streams]
        return [place for place, (number, order, _) in enumerate(placed) if order < new[number]]


class _Numbers(Sequence[int]):
    """The lengths of examples by their index."""

    def __init__(self, data: StreamedData, *, learned: bool) -> None:
        self._data, self._learned = data, learned

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> NoReturn:
        raise AssertionError("a stream has no end, so its lengths are looked up one by one")

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # nobody slices it
        return self._data.count(index, learned=self._learned)
