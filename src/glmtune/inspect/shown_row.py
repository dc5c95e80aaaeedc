"""A row as a page shows it: pieces that are learned, not learned, or cut.

    whole     P P A A B B C C     the encoded conversation
    fitted    P P B B C           shortened to data.max_length, as training sees it
    shown     P P(A A)B B C(C)    the cut pieces are in parentheses

The pieces that are not cut are exactly the tokens that training sees, so the counts on the page
equal those of training.
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
    """The shortest run of tokens that decodes to text.

    Attributes:
        position: of its first token in the uncut row, counted from 0.
        ids: of the tokens.
        text: the decoded text; of a special token, its name.
        state: how training uses it.
        is_special: whether it is a special token.
    """

    position: int
    ids: tuple[int, ...]
    text: str
    state: State
    is_special: bool

    @property
    def html(self) -> Markup:
        """The escaped text with visible white space; a line break at the end is only a sign."""
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
        fate: how it was shortened or why it was left out, "" if it is complete.
        num_tokens, num_learned: as training counts them, without cut tokens.
        num_cut: tokens that training does not see.
        num_byte_tokens: byte tokens in the complete row; None if not counted.
        pieces: the row, or its beginning.
        num_hidden: tokens after these pieces that are not shown.
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
    """Split a row into pieces for a page.

    Args:
        whole: the encoded conversation.
        fitted: the part that training sees; None if the row is left out.
        tokenizer: decodes the ids.
        place, format, fate, number, num_byte_tokens: as in `ShownRow`.
    """
    kept = fitted or Example([], [])
    pieces: list[ShownPiece] = []
    position = 0
    for part, is_cut in _spans(whole, kept):
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


def _spans(whole: Example, kept: Example) -> Iterator[tuple[Example, bool]]:
    """Yield the kept and the cut spans of a row in order."""
    if whole.input_ids == kept.input_ids:
        yield kept, False
        return
    a, b = whole.input_ids, kept.input_ids
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag in ("delete", "replace"):
            yield Example(a[a0:a1], [IGNORE] * (a1 - a0)), True
        if b1 > b0:  # a word that is cut in the middle may have other tokens
            yield Example(b[b0:b1], kept.labels[b0:b1]), False


def visible(text: str) -> Markup:
    """Escape a text, and make its white space visible."""
    return harmless(text, WHITE_SPACE)


def harmless(text: str, instead: Mapping[str, str] | None = None) -> Markup:
    """Escape a text and spell out invisible characters and those that reverse the direction."""
    instead = {"\n": "\n", "\t": "\t"} if instead is None else instead
    return escape(visible_text(text, instead))
