"""A row -> what training sees of it: its tokens as readable pieces, and which are learned.

    你好  ->  ids 36474 54591             pieces "▁你" "好"
    鑫    ->  ids 236 139 174             one piece "鑫": its bytes say nothing one by one

A piece is the shortest run of tokens that is text, so the pieces of a row joined are its text.
A run never crosses from what is learned to what is not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any

from glmtune.conversation import Conversation
from glmtune.data.encode import BATCH_ROWS, Fate, fit
from glmtune.data.formats import Format, check_roles, convert_sides, detect
from glmtune.data.rows import BadRow, Row, RowError
from glmtune.data.sources import find_source
from glmtune.errors import DataError
from glmtune.model.load import load_tokenizer
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.sections import DataSection
from glmtune.template.base import IGNORE, Example, Template
from glmtune.template.pieces import Piece, pieces_of, text_of
from glmtune.template.select import template_for


@dataclass(frozen=True, slots=True)
class SeenRow:
    """What training sees of a row.

    Attributes:
        place: `file:line`, and which side of a pair.
        format: the format it was read as.
        template: how the ids were laid out.
        fate: what its length means for training, "" when nothing.
        example: ids and labels, after that.
        pieces: the example as text.
        input_text: the ids decoded.
        label_text: the learned ids decoded.
    """

    place: str
    format: str
    template: Mapping[str, Any]
    fate: str
    example: Example
    pieces: tuple[Piece, ...]
    input_text: str
    label_text: str

    @property
    def num_tokens(self) -> int:
        """Ids in the example."""
        return len(self.example.input_ids)

    @property
    def num_learned(self) -> int:
        """Labels in the example."""
        return self.num_tokens - self.example.labels.count(IGNORE)


SIDES = (" (chosen)", " (rejected)")


def see_rows(
    recipe: Recipe, first: int = 1, count: int = 1, *, pairs: bool | None = False
) -> Iterator[SeenRow]:
    """Encode some rows as a run of the recipe would; a pair is two, one behind the other.

    Args:
        recipe: its model (the tokenizer alone is read) and its data.
        first: which row of data.train, counted from 1 through all its files; rows that cannot
            be used count too.
        count: how many from there, or fewer at the end.
        pairs: as for `convert_sides`.

    Raises:
        CheckpointError: there is no tokenizer.
        DataError: a file or the row cannot be used, or there are fewer rows.
    """
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    template = template_for(tokenizer, recipe.data.layout)
    check_roles(recipe.data.roles)
    num_rows = 0
    for num_rows, (entry, format) in enumerate(rows_of(recipe.data), start=1):
        if num_rows >= first + count:
            return
        if num_rows < first:
            continue
        if isinstance(entry, BadRow):
            raise RowError(entry)
        section = recipe.data
        sides = convert_sides(entry, format, section.columns, section.roles, pairs=pairs)
        yield from _see(entry, format, sides, section, template, tokenizer)
    if num_rows < first:
        raise DataError(
            f"{', '.join(recipe.data.train)}: there is no row {first}, only {num_rows:,} rows. "
            "They are counted from 1."
        )


def rows_of(section: DataSection) -> Iterator[tuple[Row | BadRow, Format]]:
    """Read the rows of all files, each with the format of its file."""
    for source in section.train:
        entries = _with_bad_rows(source, section.split)
        for _, entries_of_file in groupby(entries, key=lambda entry: entry.file):
            head = list(islice(entries_of_file, BATCH_ROWS))
            rows = [entry for entry in head if isinstance(entry, Row)]
            if not rows:
                raise RowError(next(entry for entry in head if isinstance(entry, BadRow)))
            format = detect(rows, section.format, section.columns)
            for entry in chain(head, entries_of_file):
                yield entry, format


def _with_bad_rows(source: str, split: str | None) -> Iterator[Row | BadRow]:
    bad: list[BadRow] = []
    for row in find_source(source, split=split).rows(bad.append):
        yield from bad
        bad.clear()
        yield row
    yield from bad


def _see(
    row: Row,
    format: Format,
    sides: Sequence[Conversation],
    section: DataSection,
    template: Template,
    tokenizer: Any,
) -> Iterator[SeenRow]:
    for index, conversation in enumerate(sides):
        example, fate = _fit(conversation, section, template)
        yield SeenRow(
            place=f"{row.file}:{row.line}{SIDES[index] if len(sides) == 2 else ''}",
            format=format.name,
            template=template.description,
            fate=fate,
            example=example,
            pieces=tuple(pieces_of(example, tokenizer)),
            input_text=text_of(example.input_ids, tokenizer),
            label_text=text_of(example.labels, tokenizer),
        )


def _fit(
    conversation: Conversation, section: DataSection, template: Template
) -> tuple[Example, str]:
    """Shorten a long row as training would; one that training leaves out is shown whole."""
    example = template.encode(conversation)
    max_length, num_tokens = section.max_length, len(example.input_ids)
    fitted, fate = fit(example, conversation, template, max_length, section.overlong)
    cut = f"cut off behind token {max_length:,} of {num_tokens:,}"
    is_cut = num_tokens > max_length
    told = {
        Fate.WHOLE: "",
        Fate.CUT: cut,
        Fate.SHORTENED: f"prompt shortened, it had {num_tokens:,} tokens",
        Fate.OVERLONG: f"longer than data.max_length {max_length:,}, so it is left out",
        Fate.WITHOUT_LABELS: f"{cut}, where nothing is learned yet, so it is left out"
        if is_cut
        else "nothing in it is learned, so it is left out",
    }
    return fitted or example, told[fate]
