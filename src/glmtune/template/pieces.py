"""Token ids -> the shortest runs of tokens that are text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.template.base import IGNORE, Example

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to
MAX_TOKENS_OF_CHARACTER = 4  # the bytes of the longest character in UTF-8


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that is text.

    Attributes:
        ids: of the tokens.
        text: what they are, a special token as its name.
        is_learned: whether they are labels.
        is_special: whether it is a special token.
    """

    ids: tuple[int, ...]
    text: str
    is_learned: bool
    is_special: bool


def pieces_of(example: Example, tokenizer: Any) -> Iterator[Piece]:
    """Give the pieces of an example, in order."""
    special = {
        tokenizer.convert_tokens_to_ids(token): token for token in tokenizer.all_special_tokens
    }
    before = _ids_before_text(tokenizer)
    prefix = len(tokenizer.decode(before))
    run: list[int] = []
    for index, (token_id, label) in enumerate(zip(example.input_ids, example.labels, strict=True)):
        is_learned = label != IGNORE
        if token_id in special:
            yield Piece((token_id,), special[token_id], is_learned, is_special=True)
            continue
        run.append(token_id)
        text = tokenizer.decode([*before, *run])[prefix:]
        if not text.endswith(UNFINISHED) or _is_last(example, index, len(run), special):
            yield Piece(tuple(run), text, is_learned, is_special=False)
            run = []


def _ids_before_text(tokenizer: Any) -> list[int]:
    """Give ids to decode in front of a run: at the very beginning a space would be dropped."""
    ids: list[int] = tokenizer.encode("x", add_special_tokens=False)
    return ids


def _is_last(example: Example, index: int, length: int, special: dict[int, str]) -> bool:
    """Whether a run cannot go on behind a token, though its last character is unfinished."""
    after = index + 1
    return (
        length == MAX_TOKENS_OF_CHARACTER
        or after == len(example.input_ids)
        or example.input_ids[after] in special
        or (example.labels[after] == IGNORE) != (example.labels[index] == IGNORE)
    )


def text_of(ids: Sequence[int], tokenizer: Any) -> str:
    """Decode as the tokenizer does, special tokens and all; unlearned labels are left out."""
    text: str = tokenizer.decode([token_id for token_id in ids if token_id != IGNORE])
    return text
