"""Sources -> rows, each with the format of its file: the one loop that reads a data set.

    train: [data/, more.jsonl]          read(convert)
      data/a.json    alpaca        ->   Entry(row, alpaca, conversation)
      data/b.json    sharegpt      ->   Entry(row, sharegpt, conversation)
                     a broken row  ->   BadRow, in its place
      more.jsonl     openai        ->   Entry(row, openai, conversation)

Each file has its own format, found by its first `HEAD_ROWS` rows. Training, lint, inspect,
predict and the proofs all read rows here, so they see the same rows in the same order, and the
position in the stream is the number of a row: bad rows count.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, groupby, islice
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

from glmtune.conversation import Conversation
from glmtune.data.formats import Format, KeyScan, Notes, check_roles, detect, without_history
from glmtune.data.rows import BadRow, Row, RowError
from glmtune.data.sources import Source, find_sources
from glmtune.errors import DataError
from glmtune.recipe.sections import DataSection

HEAD_ROWS = 100  # of each file; its format is found by them
# Rows are handled in batches of so many, or fewer long ones.
BATCH_ROWS = 2000
BATCH_CHARS = 4_000_000

T = TypeVar("T")
# As `formats.convert`: (row, format, columns, roles) -> what the row means.
ConvertRow = Callable[[Row, Format, Mapping[str, str], Mapping[str, str]], T]


class RowOptions(Protocol):
    """How rows are read: a recipe's `data` section, or `EncodeOptions`."""

    @property
    def format(self) -> str | None:
        """The name of the format; None finds it by the columns."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Our field -> their column."""

    @property
    def roles(self) -> Mapping[str, str]:
        """Their role -> ours."""

    @property
    def mask_history(self) -> bool:
        """Whether only the last answer of a row is learned."""


class Entry(NamedTuple, Generic[T]):
    """A row, the format of its file, and what the row was converted to."""

    row: Row
    format: Format
    value: T


class Dataset:
    """The rows of some sources, in order.

    Args:
        sources: from `find_sources`.
        options: the format, columns and roles that the user gave.
        needs_answer: whether rows must have a column for the answer, as for training.
        needs_label: whether every row says if its answer is a good one.

    Attributes:
        formats: file -> the name of its format, for the files read so far.
        left_out: what is not read of the sources, a sentence for each that has more.
        notes: what is to be said of the rows read so far, such as keys that nothing reads.

    Raises:
        DataError: `options.roles` maps to a role that does not exist.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        options: RowOptions,
        *,
        needs_answer: bool = True,
        needs_label: bool = False,
    ) -> None:
        for source in sources:
            check_roles(options_of(source, options).roles)
        check_roles(options.roles)
        self.formats: dict[str, str] = {}
        self.left_out = tuple(source.left_out for source in sources if source.left_out)
        self.notes = Notes()
        self._sources = sources
        self._options = options
        self._needs_answer = needs_answer
        self._needs_label = needs_label

    @classmethod
    def of(
        cls, section: DataSection, *, needs_answer: bool = True, needs_label: bool = False
    ) -> "Dataset":
        """Open the rows of `data.train`.

        Raises:
            DataError: as the constructor, or a source does not exist.
        """
        sources = find_sources(section.train, split=section.split, streaming=section.streaming)
        return cls(sources, section, needs_answer=needs_answer, needs_label=needs_label)

    def read(self, to_value: ConvertRow[T]) -> Iterator[Entry[T] | BadRow]:
        """Read and convert every row; those that cannot be used come as `BadRow`.

        Args:
            to_value: `convert`, `convert_labeled`, `convert_pair`, `split_answer` or the like.

        Raises:
            DataError: a file cannot be used at all, or has no known format.
        """
        for index, source in enumerate(self._sources):
            options = options_of(source, self._options)
            rows_of_source = rows_in_place([source], start=index)
            further = _rows_beyond_cap(source)
            for file, rows in groupby(rows_of_source, key=lambda row: row.file):
                beyond = [row for row in further if row.file == file]
                yield from self._read_file(file, rows, beyond, options, to_value)

    def _read_file(
        self,
        file: str,
        rows: Iterator[Row | BadRow],
        beyond: Sequence[Row],
        options: "SourceOptions",
        to_value: ConvertRow[T],
    ) -> Iterator[Entry[T] | BadRow]:
        """Convert the rows of one file; those `beyond` its cap only help to find the format."""
        while isinstance(first := next(rows, None), BadRow):
            yield first
        if first is None:
            return
        head = [first, *islice(rows, HEAD_ROWS - 1)]
        format = detect(
            [*(row for row in head if isinstance(row, Row)), *beyond],
            options.format,
            options.columns,
            needs_answer=self._needs_answer,
        )
        self.formats.setdefault(file, format.name)
        columns, roles = options.columns, options.roles
        masks_history = self._options.mask_history
        scan = KeyScan(format, columns, roles, needs_label=self._needs_label)
        for row in chain(head, rows):
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                value = to_value(row, format, columns, roles)
            except RowError as error:
                yield error.bad
            else:
                scan.note(row, self.notes)
                yield Entry(row, format, self._masked(value) if masks_history else value)

    def _masked(self, value: T) -> T:
        """Leave only the last answer of each conversation to be learned."""
        if isinstance(value, Conversation):
            return cast("T", without_history(value))
        if isinstance(value, tuple) and all(isinstance(side, Conversation) for side in value):
            return cast("T", tuple(without_history(side) for side in value))
        return value  # the prompt and the answer of a prediction


def _rows_beyond_cap(source: Source) -> list[Row]:
    """Return the rows right after a cap, as in `path#3`, which would narrow what decides a format.

    They are not learned, so what is wrong with them is not said.
    """
    if source.max_rows is None or source.max_rows >= HEAD_ROWS:
        return []
    rows: list[Row] = []
    with suppress(DataError):
        every = replace(source, max_rows=None).rows(lambda bad: None)
        rows.extend(islice(every, source.max_rows, HEAD_ROWS))
    return rows


class SourceOptions(NamedTuple):
    """How the rows of one source are read."""

    format: str | None
    columns: Mapping[str, str]
    roles: Mapping[str, str]


def options_of(source: Source, options: RowOptions) -> SourceOptions:
    """Return the options of a source: its own, and those of all for the keys that it leaves out.

    A format of its own comes without the columns and roles of all, which describe another one.
    """
    of_all = SourceOptions(options.format, options.columns, options.roles)
    own = source.own
    if own is None:
        return of_all
    if own.format is not None:
        of_all = SourceOptions(own.format, {}, {})
    return SourceOptions(
        of_all.format,
        of_all.columns if own.columns is None else own.columns,
        of_all.roles if own.roles is None else own.roles,
    )


def rows_in_place(sources: Iterable[Source], start: int = 0) -> Iterator[Row | BadRow]:
    """Read the rows of sources in order, the bad ones in their place among them.

    Args:
        sources: to read.
        start: the number of the first source, which its rows know.

    Raises:
        DataError: a file cannot be used at all.
    """
    bad: list[BadRow] = []
    for index, source in enumerate(sources, start=start):
        for row in source.rows(bad.append):
            if bad:
                yield from bad
                bad.clear()
            if index:
                row.source = index
            yield row
        yield from bad
        bad.clear()


def batched(items: Iterable[T], num_chars: Callable[[T], int]) -> Iterator[list[T]]:
    """Group items into batches of at most `BATCH_ROWS`, fewer where they are long.

    Args:
        items: in order.
        num_chars: the length of one; a batch is closed when its items reach `BATCH_CHARS`.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += num_chars(item)
        if len(batch) >= BATCH_ROWS or total >= BATCH_CHARS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def conversation_chars(conversations: Iterable[Conversation]) -> int:
    """Count the characters of the messages of some conversations."""
    return sum(len(message.content) for each in conversations for message in each)
