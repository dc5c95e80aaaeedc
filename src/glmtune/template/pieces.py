"""Split token ids into the shortest runs of tokens that decode to complete characters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.template.base import IGNORE, Example

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what an incomplete character decodes to
MAX_TOKENS_OF_CHARACTER = 4  # bytes of the longest character in UTF-8


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that decodes to complete characters.

    Attributes:
        ids: of the tokens.
        text: their text, or the name of a special token.
        is_learned: whether they are labels.
        is_special: whether it is a special token.
    """

    ids: tuple[int, ...]
    text: str
    is_learned: bool
    is_special: bool


def pieces_of(example: Example, tokenizer: Any) -> Iterator[Piece]:
    """Yield the pieces of an example, in order."""
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
    """Return ids to decode before a run, since decoding drops a space at the start of a text."""
    ids: list[int] = tokenizer.encode("x", add_special_tokens=False)
    return ids


def _is_last(example: Example, index: int, length: int, special: dict[int, str]) -> bool:
    """Whether a run ends at a token, although its last character is incomplete."""
    after = index + 1
    return (
        length == MAX_TOKENS_OF_CHARACTER
        or after == len(example.input_ids)
        or example.input_ids[after] in special
        or (example.labels[after] == IGNORE) != (example.labels[index] == IGNORE)
    )


def text_of(ids: Sequence[int], tokenizer: Any) -> str:
    """Decode ids including special tokens, leaving out labels that are not learned."""
    text: str = tokenizer.decode([token_id for token_id in ids if token_id != IGNORE])
    return text
