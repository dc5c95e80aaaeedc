"""A row as a page shows it: pieces that are learned, not learned, or cut away.

    whole     P P A A B B C C     the conversation, encoded
    fitted    P P B B C           what training sees of it, in data.max_length
    shown     P P(A A)B B C(C)    in brackets what was cut

What is not cut, in order, is exactly what training sees, so numbers on the page are those of
the trainer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from markupsafe import Markup, escape

from glmtune.inspect.visible import WHITE_SPACE
from glmtune.inspect.visible import visible as visible_text
from glmtune.template.base import IGNORE, Example
from glmtune.template.pieces import pieces_of

State = Literal["learned", "unlearned", "cut"]

MAX_PIECES = 4000  # of a row on a page; a book in one row would make it useless


@dataclass(frozen=True, slots=True)
class ShownPiece:
    """A run of tokens that is text.

    Attributes:
        position: of its first token in the whole row, counted from 0.
        ids: of the tokens.
        text: what they are, a special token as its name.
        state: what training does with it.
        is_special: whether it is a special token.
    """

    position: int
    ids: tuple[int, ...]
    text: str
    state: State
    is_special: bool

    @property
    def html(self) -> Markup:
        """The text, escaped, with white space that can be seen; a last line break is a sign."""
        return visible(self.text).removesuffix("\n")

    @property
    def ends_line(self) -> bool:
        """Whether the next piece begins a line."""
        return self.text.endswith("\n")


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row on a page.

    Attributes:
        number: counted from 1 through all files, as `glmtune inspect --row` does; 0 if unknown.
        place: `file:line`.
        format: the format it was read as.
        fate: what became of it for its length or labels, "" when it is learned whole.
        num_tokens, num_learned: as the trainer counts them: cut tokens do not count.
        num_cut: tokens that training does not see.
        num_byte_tokens: tokens of the whole row that are one byte of a character; None
            if not counted.
        pieces: the row, or its beginning.
        num_hidden: tokens behind these pieces that are not shown.
    """

    number: int
    place: str
    format: str
    fate: str
    num_tokens: int
    num_learned: int
    num_cut: int
    num_byte_tokens: int | None
    pieces: tuple[ShownPiece, ...]
    num_hidden: int = 0


def show_row(
    whole: Example,
    fitted: Example | None,
    tokenizer: Any,
    *,
    place: str,
    format: str = "",
    fate: str = "",
    number: int = 0,
    num_byte_tokens: int | None = None,
) -> ShownRow:
    """Make a row fit to be shown.

    Args:
        whole: the conversation encoded.
        fitted: what training sees of it; None when it is left out.
        tokenizer: makes text of the ids.
        place, format, fate, number, num_byte_tokens: as in `ShownRow`.
    """
    kept = fitted or Example([], [])
    pieces: list[ShownPiece] = []
    position = 0
    for part, is_cut in _stretches(whole, kept):
        for piece in pieces_of(part, tokenizer):
            state: State = "cut" if is_cut else "learned" if piece.is_learned else "unlearned"
            if len(pieces) < MAX_PIECES:
                pieces.append(ShownPiece(position, piece.ids, piece.text, state, piece.is_special))
            position += len(piece.ids)
    num_tokens = len(kept.input_ids)
    return ShownRow(
        number=number,
        place=place,
        format=format,
        fate=fate,
        num_tokens=num_tokens,
        num_learned=num_tokens - kept.labels.count(IGNORE),
        num_cut=position - num_tokens,
        num_byte_tokens=num_byte_tokens,
        pieces=tuple(pieces),
        num_hidden=position - sum(len(piece.ids) for piece in pieces),
    )


def _stretches(whole: Example, kept: Example) -> Iterator[tuple[Example, bool]]:
    """Give the kept stretches of a row in order, and between them what was cut there."""
    if whole.input_ids == kept.input_ids:
        yield kept, False
        return
    a, b = whole.input_ids, kept.input_ids
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag in ("delete", "replace"):
            yield Example(a[a0:a1], [IGNORE] * (a1 - a0)), True
        if b1 > b0:  # a word that was cut through may have other tokens than the whole one
            yield Example(b[b0:b1], kept.labels[b0:b1]), False


def visible(text: str) -> Markup:
    """Escape a text, and make its white space visible."""
    return harmless(text, WHITE_SPACE)


def harmless(text: str, instead: Mapping[str, str] | None = None) -> Markup:
    """Escape a text, and spell out what would turn the line around or cannot be seen."""
    instead = {"\n": "\n", "\t": "\t"} if instead is None else instead
    return escape(visible_text(text, instead))
