"""What a single token stands for: bytes, which may be a part of a character, and a text to show."""

import re
from typing import Any

from glmtune.template.base import decode
from glmtune.template.pieces import UNFINISHED

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # SentencePiece's


def token_bytes(tokenizer: Any, token_id: int) -> bytes | None:
    """Return the bytes of a token; None if it has none of its own, as a control token.

    Of a byte-level vocabulary, a token that is a part of a character is None, too.
    """
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None or token_id in tokenizer.all_special_ids:
        return None
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    if token.startswith(_SPACE):
        return str(token).replace(_SPACE, " ").encode()
    text = decode(tokenizer, [token_id])
    return None if UNFINISHED in text else text.encode()


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return a token as text; a byte as <0xE4>, and a control token by its name."""
    own = token_bytes(tokenizer, token_id)
    if own is None:
        return str(tokenizer.convert_ids_to_tokens(token_id) or "")
    try:
        return own.decode()
    except UnicodeDecodeError:
        return str(tokenizer.convert_ids_to_tokens(token_id))
