"""What a ChatGLM tokenizer is given: the SentencePiece model, texts, batches and conversations.

transformers accepts a batch in many forms, which `split_rows` reduces to one:

    ["a", "b"]                     (a, None), (b, None)
    ["a", "b"], ["c", "d"]         (a, c), (b, d)
    [("a", "c"), ("b", "d")]       (a, c), (b, d)
    [[1, 2], [3]]                  ids, which are encoded already: ([1, 2], None), ([3], None)
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from glmtune.errors import TemplateError

Ids = list[int]
Row = tuple[Ids, Ids | None]
"""A text and its pair, as ids."""


def load_pieces(path: Path) -> SentencePieceProcessor:
    """Read a SentencePiece model.

    Raises:
        ValueError: the file holds something else.
    """
    content = path.read_bytes()
    model = SentencePieceProcessor()
    try:
        if not model.load_from_serialized_proto(content):
            raise RuntimeError("it cannot be parsed")
    except RuntimeError as error:
        hint = (
            "It is a Git LFS pointer: run `git lfs pull` in its folder."
            if content.startswith(b"version https://git-lfs")
            else "Download it again; ChatGLM3's has 1,018,370 bytes."
        )
        raise ValueError(
            f"{path} ({len(content):,} bytes) is not a SentencePiece model: {error}. {hint}"
        ) from error
    return model


def check_text(text: Any) -> None:
    """Explain why SentencePiece refused a text.

    Raises:
        ValueError: it is not a string, or has half a surrogate pair.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected text, got {type(text).__name__}: {str(text)[:80]}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has half a surrogate pair, {text[error.start]!r}, as its character "
            f"{error.start + 1}: {text[max(0, error.start - 20) : error.end + 20]!r}. It is not "
            "valid Unicode; fix the program that wrote it, or drop the text."
        ) from error


def is_batch_of_texts(text: Any, is_split_into_words: bool) -> bool:
    """Whether an argument holds many texts; a list of ids or words is one, as in transformers."""
    if not isinstance(text, (list, tuple)):
        return False
    if not text:
        return not is_split_into_words
    return isinstance(text[0], (list, tuple) if is_split_into_words else (str, list, tuple))


def split_rows(
    texts: Sequence[Any], pairs: Sequence[Any] | None, is_split_into_words: bool
) -> list[tuple[Any, Any]]:
    """Split a batch into texts and their pairs; an entry may also be a pair of texts.

    Raises:
        ValueError: the numbers of texts and pairs differ, or an entry is neither.
    """
    if pairs is not None:
        if not isinstance(pairs, (list, tuple)) or len(pairs) != len(texts):
            raise ValueError("a batch of texts needs as many text pairs.")
        return list(zip(texts, pairs, strict=True))
    return [_split_row(text, is_split_into_words) for text in texts]


def _split_row(text: Any, is_split_into_words: bool) -> tuple[Any, Any]:
    if isinstance(text, str) or not text or isinstance(text[0], int):
        return text, None
    if len(text) == 2 and (not is_split_into_words or isinstance(text, tuple)):
        return text[0], text[1]
    if is_split_into_words:
        return text, None
    if len(text) == 1:
        return text[0], None
    raise ValueError(f"expected a text or a pair of texts in a batch, got {len(text)} texts.")


def texts_of_rows(rows: Iterable[tuple[Any, Any]], is_split_into_words: bool) -> list[str]:
    """Collect the texts, or the words, of all rows and their pairs, to encode them together."""
    texts: list[str] = []
    for entry in chain.from_iterable(rows):
        if isinstance(entry, str):
            texts.append(entry)
        elif is_split_into_words and isinstance(entry, (list, tuple)):
            texts.extend(word for word in entry if isinstance(word, str))
    return texts


def rows_with_ids(
    rows: Iterable[tuple[Any, Any]], ids_of_texts: Iterable[Ids], is_split_into_words: bool
) -> list[Row]:
    """Replace the texts, or the words, of all rows and their pairs by ids.

    Args:
        rows: each is a text, words or ids, and its pair.
        ids_of_texts: of what `texts_of_rows` collected, in its order.
        is_split_into_words: whether a list of strings is the words of one text.

    Raises:
        ValueError: an entry is neither a text nor a list of ids (or of words).
    """
    remaining = iter(ids_of_texts)

    def ids_of(entry: Any) -> Ids:
        if isinstance(entry, str):
            return next(remaining)
        if isinstance(entry, (list, tuple)):
            if all(isinstance(item, int) for item in entry):
                return list(entry)
            if is_split_into_words and all(isinstance(item, str) for item in entry):
                return list(chain.from_iterable(next(remaining) for _ in entry))
        raise ValueError(
            f"got {type(entry).__name__} {str(entry)[:80]!r}, expected a text or a list of "
            "ids (or of words, with is_split_into_words=True)."
        )

    return [(ids_of(first), None if second is None else ids_of(second)) for first, second in rows]


def is_batch_of_conversations(conversation: Any) -> bool:
    """Whether an argument holds many conversations, rather than the messages of one.

    Raises:
        TemplateError: it is empty.
    """
    if not isinstance(conversation, (list, tuple)):
        return False
    if not conversation:
        raise TemplateError("the conversation is empty; it needs at least one message.")
    return isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")


def check_chat_arguments(
    chat_template: str | None,
    documents: Any,
    add_generation_prompt: bool,
    continue_final_message: bool,
) -> None:
    """Refuse arguments of `apply_chat_template` that the chat format does not support.

    Raises:
        ValueError: names the argument.
    """
    for name, value in (("chat_template", chat_template), ("documents", documents)):
        if value is not None:
            raise ValueError(
                f"{name} cannot be used: ChatGLM's chat format joins ids, not text, and "
                "is fixed. Leave the argument out."
            )
    if continue_final_message and add_generation_prompt:
        raise ValueError("either continue the final message or begin a new one, not both.")


def fit_masks(
    masks: Sequence[list[int]], lengths: Sequence[int], truncation_side: str, padding_side: str
) -> list[list[int]]:
    """Truncate or pad masks to the lengths of their ids, on the same sides."""
    fitted = []
    for mask, length in zip(masks, lengths, strict=True):
        first = 0 if truncation_side == "right" else max(0, len(mask) - length)
        kept = mask[first : first + length]
        pads = [0] * (length - len(kept))
        fitted.append(pads + kept if padding_side == "left" else kept + pads)
    return fitted
