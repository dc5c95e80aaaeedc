"""A page in English -> the same page in the language of the reader.

What stands between two tags is a text, and so are the labels for screen readers. What is data stays
as it is: code, answers, tokens, places in files, and whatever has `translate="no"`.
"""

import html
import json
import re
from collections.abc import Iterator

from glmtune.messages import is_chinese, translate

_PIECES = re.compile(r"<!--.*?-->|<[^>]*>|[^<]+", re.DOTALL)
_NAME = re.compile(r"</?([\w-]+)")
_DATA_TAGS = ("script", "style", "pre", "code", "textarea")
_IS_DATA = re.compile(r'translate="no"|class="(?:[^"]* )?(?:code|place|tokens)(?: [^"]*)?"')
_LABELS = re.compile(r'(aria-label|data-chart)="([^"]*)"')


def in_language(page: str) -> str:
    """Translate a page of HTML or SVG that our templates made; English comes back as it is."""
    if not is_chinese():
        return page
    return "".join(_translated(page)).replace('<html lang="en">', '<html lang="zh-CN">', 1)


def _translated(page: str) -> Iterator[str]:
    data_tag, depth = "", 0  # the element of data that we are in, and how often within itself
    for match in _PIECES.finditer(page):
        piece = match[0]
        name = _NAME.match(piece)
        tag = name[1] if name is not None else ""
        if data_tag:
            if tag == data_tag and not piece.endswith("/>"):
                depth += -1 if piece.startswith("</") else 1
                data_tag = data_tag if depth else ""
            yield _LABELS.sub(_label, piece) if tag else piece
        elif not piece.startswith("<"):
            yield _text(piece)
        else:
            is_start = tag and not piece.startswith("</") and not piece.endswith("/>")
            if is_start and (tag in _DATA_TAGS or _IS_DATA.search(piece)):
                data_tag, depth = tag, 1
            yield _LABELS.sub(_label, piece)


def _text(piece: str) -> str:
    text = html.unescape(piece)
    inner = text.strip()
    twin = translate(" ".join(inner.split()))
    return piece if twin == inner else html.escape(text.replace(inner, twin, 1), quote=False)


def _label(match: re.Match[str]) -> str:
    name, value = match[1], html.unescape(match[2])
    if name == "data-chart":
        chart = json.loads(value)
        twin = json.dumps({**chart, "names": [*map(translate, chart["names"])]})
    else:
        twin = translate(value)
    return f'{name}="{html.escape(twin)}"'
