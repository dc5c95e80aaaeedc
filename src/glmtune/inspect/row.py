"""A row -> what training sees of it: its tokens as readable pieces, and which are learned.

    你好  ->  ids 36474 54591             pieces "▁你" "好"
    鑫    ->  ids 236 139 174             one piece "鑫", since a single byte is not text

A piece is the shortest run of tokens that is text, so the pieces of a row, joined, are its text.
A run never contains both learned and unlearned tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from glmtune.conversation import Conversation
from glmtune.data.dataset import Dataset, Entry
from glmtune.data.fit import describe_fate, fit
from glmtune.data.formats import convert_sides
from glmtune.data.learned_prompt import LearnedPrompt
from glmtune.data.rows import BadRow, RowError
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
        template: the template's description.
        fate: what becomes of it by its length, "" when it is learned in full.
        example: ids and labels, after it was fitted to max_length.
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


def side_of(sides: Sequence[Conversation], index: int) -> str:
    """Name a side of a pair, or what the label of a row says; "" for other rows."""
    if len(sides) == 2:
        return (" (chosen)", " (rejected)")[index]
    label = sides[index].is_good
    return "" if label is None else " (good)" if label else " (bad)"


def see_rows(
    recipe: Recipe, first: int = 1, count: int = 1, *, pairs: bool | None = False
) -> Iterator[SeenRow]:
    """Encode some rows as a run of the recipe would; a pair gives two, the chosen side first.

    Args:
        recipe: its model (only the tokenizer is read) and its data.
        first: which row of data.train, counted from 1 through all its files; rows that cannot
            be used count too.
        count: how many from there, or fewer at the end.
        pairs: as for `convert_sides`.

    Raises:
        CheckpointError: there is no tokenizer.
        DataError: a file or the row cannot be used, or there are fewer rows.
    """
    tokenizer = load_tokenizer(recipe.model.name_or_path, recipe.model.add_tokens)
    template = template_for(tokenizer, recipe.data.layout)
    if recipe.data.train_on_prompt:
        template = LearnedPrompt(template)
    labeled = recipe.has_labels
    entries = Dataset.of(recipe.data, needs_label=labeled).read(
        partial(convert_sides, pairs=pairs, needs_label=labeled)
    )
    num_rows = 0
    for num_rows, entry in enumerate(entries, start=1):
        if num_rows >= first + count:
            return
        if num_rows < first:
            continue
        if isinstance(entry, BadRow):
            raise RowError(entry)
        yield from _see(entry, recipe.data, template, tokenizer)
    if num_rows < first:
        names = ", ".join(map(str, recipe.data.train))
        raise DataError(
            f"{names}: there is no row {first}, only {num_rows:,} rows. They are counted from 1."
        )


def _see(
    entry: Entry[tuple[Conversation, ...]], section: DataSection, template: Template, tokenizer: Any
) -> Iterator[SeenRow]:
    row, format, sides = entry
    for index, conversation in enumerate(sides):
        whole = template.encode(conversation)
        fitted, fate = fit(whole, conversation, template, section.max_length, section.overlong)
        example = fitted or whole  # a row that is left out is shown in full
        yield SeenRow(
            place=f"{row.file}:{row.line}{side_of(sides, index)}",
            format=format.name,
            template=template.description,
            fate=describe_fate(fate, len(whole.input_ids), section.max_length),
            example=example,
            pieces=tuple(pieces_of(example, tokenizer)),
            input_text=text_of(example.input_ids, tokenizer),
            label_text=text_of(example.labels, tokenizer),
        )
