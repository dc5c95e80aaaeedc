"""Traditional and simplified characters, and what is left of a text when its form is no matter.

`traditional.txt` has two lines of the same length: characters, and the simplified form of each.
They are the pairs that Big5 and GB2312 have, after OpenCC's table of characters (Apache 2.0,
https://github.com/BYVoid/OpenCC).
"""

import re
from functools import cache
from importlib.resources import files

MARK = "。"  # stands for any punctuation
_DROPPED = re.compile(
    r"[!?;\"'~。、“”‘’「」『』《》〈〉【】…—·・！？；＂＇～\u200b\u200c\u200d\u2060\ufeff\0]+"
)
_BETWEEN_WORDS = re.compile(r"[.,:，：．](?:(?<![0-9].)|(?![0-9]))")  # not in 3.5 and 1,000


@cache
def simplified_forms() -> dict[int, str]:
    """Return the simplified form of each traditional character, for `str.translate`."""
    text = (files("glmtune.data.lint") / "traditional.txt").read_text(encoding="utf-8")
    traditional, simplified = text.split()
    return {ord(one): other for one, other in zip(traditional, simplified, strict=True)}


@cache
def _plain_forms() -> tuple[re.Pattern[str], dict[int, str]]:
    """Return the full width and traditional characters, and what `plain` makes of each."""
    forms = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | simplified_forms()
    return re.compile(f"[{re.escape(''.join(map(chr, forms)))}]"), forms


@cache
def _only_traditional() -> re.Pattern[str]:
    """Match the characters that no simplified text has: some, such as 乾, are in both scripts."""
    return re.compile(f"[{''.join(filter(_is_no_gb2312, map(chr, simplified_forms())))}]")


def _is_no_gb2312(char: str) -> bool:
    try:
        char.encode("gb2312")
    except UnicodeEncodeError:
        return True
    return False


def find_traditional(text: str) -> list[str]:
    """Find the characters of a text that are only used in traditional script."""
    return [] if text.isascii() else _only_traditional().findall(text)


def plain(text: str) -> str:
    """Return a text without what makes no difference to a reader.

    Case, white space, punctuation, full width and traditional script are gone. Signs of arithmetic
    and brackets stay, and so does a text of nothing else.
    """
    return marked(text).replace(MARK, "") or "".join(text.split())


def marked(text: str) -> str:
    """Return the same with one mark for all punctuation, where a text must keep its length."""
    plainer = _BETWEEN_WORDS.sub(MARK, _DROPPED.sub(MARK, "".join(text.split())))
    if not plainer.isascii():
        other, forms = _plain_forms()
        if other.search(plainer):
            plainer = plainer.translate(forms)
    return plainer.lower()
