"""Make white space visible, and characters that could mislead a reader or control a terminal."""

from collections.abc import Mapping

WHITE_SPACE = {"\n": "⏎\n", "\t": "⇥", "\r": "␍"}
IDEOGRAPHIC_SPACE = "\u3000"  # the wide space of Chinese text


def visible(text: str, instead: Mapping[str, str] = WHITE_SPACE) -> str:
    """Replace characters that cannot be seen.

    Args:
        text: any text.
        instead: replacements of single characters; other characters that are not printable,
            such as control characters and marks that reverse a line, become escape sequences.
    """
    return "".join(
        instead.get(char) or (char if _is_printable(char) else repr(char)[1:-1]) for char in text
    )


def _is_printable(char: str) -> bool:
    return char.isprintable() or char == IDEOGRAPHIC_SPACE
