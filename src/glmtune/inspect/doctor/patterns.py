r"""Split regular expressions so that long logs are searched fast.

    CUDA out of memory|OutOfMemoryError|CUBLAS_\w+FAILED
    -> "CUDA out of memory" (CUDA out of memory), "OutOfMemoryError" (...), "CUBLAS_" (...)

Most symptoms are not in a log. Finding that a literal is absent is many times faster than a search
for the expression, and where it is present, only its lines need to be searched.
"""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alternative:
    """A part of a regular expression between two `|`.

    Attributes:
        pattern: the part, compiled.
        literal: text that every match contains, "" if there is none.
        spans_lines: whether a match may have more than one line.
    """

    pattern: re.Pattern[str]
    literal: str
    spans_lines: bool


_TOKEN = re.compile(
    r"(?P<escape>\\.)|(?P<set>\[\]?(?:\\.|[^\]\\])*\])|(?P<repeat>[*?+]\??|\{[\d,]*\}\??)"
    r"|(?P<open>\((?:\?(?:P<\w+>|<?[=!:]|:))?)|(?P<close>\))|(?P<bar>\|)|(?P<other>.)",
    re.DOTALL,
)


@functools.cache
def split_alternatives(pattern: str) -> tuple[Alternative, ...]:
    """Split a regular expression at the `|` outside of groups."""
    cuts, depth = [0], 0
    for token in _TOKEN.finditer(pattern):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if token.lastgroup == "bar" and depth == 0:
            cuts += [token.start(), token.end()]
    cuts.append(len(pattern))
    parts = [pattern[start:end] for start, end in zip(cuts[::2], cuts[1::2], strict=True)]
    return tuple(
        Alternative(
            re.compile(part, re.MULTILINE),
            _literal_of(part),
            spans_lines=any(text in part for text in (r"[\s\S]", r"\n", r"\s")),
        )
        for part in parts
    )


def _literal_of(part: str) -> str:
    """Return the longest text outside of groups that every match contains."""
    runs, depth = [""], 0
    for token in _TOKEN.finditer(part):
        kind, text = token.lastgroup, token.group()
        depth += (kind == "open") - (kind == "close")
        if depth or kind == "close":
            runs.append("")
        elif kind == "repeat":
            if text[0] != "+":  # what it repeats may be absent
                runs[-1] = runs[-1][:-1]
            runs.append("")
        elif (kind == "escape" and not text[1].isalnum()) or (
            kind == "other" and text not in ".^$"
        ):
            runs[-1] += text[-1]
        else:
            runs.append("")
    return max(runs, key=len)
