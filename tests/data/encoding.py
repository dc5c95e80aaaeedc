"""Rows, and a template that counts what it encodes: for the tests of encoding and its cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmtune.conversation import Conversation
from glmtune.data.encode import EncodeOptions
from glmtune.data.formats import FORMATS, convert
from glmtune.data.rows import Row
from glmtune.template.base import Example
from glmtune.template.chatglm import ChatGLMTemplate

ALPACA = [
    {"instruction": "北京", "input": "天气", "output": "3 度。"},
    {"instruction": "什么是机器学习？", "input": "", "output": "学习规律的方法。"},
    {"instruction": "一", "input": "", "output": "1"},
]


TALK = {
    "conversations": [
        {"role": "user", "content": "一"},
        {"role": "assistant", "content": "1", "loss": False},
        {"role": "user", "content": "二"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "谢谢"},
        {"role": "assistant", "content": "好"},
        {"role": "user", "content": "再见"},
    ]
}


class CountingTemplate(ChatGLMTemplate):
    """Counts what it is asked to encode, so that a test sees whether a cache was used."""

    num_encoded = 0

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        self.num_encoded += len(conversations)
        return super().encode_batch(conversations)


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def expected(rows: Sequence[dict[str, Any]], template: ChatGLMTemplate, name: str) -> list[Example]:
    """What the template itself makes of rows of a format."""
    format = FORMATS[name]
    return [template.encode(convert(Row(row, "", 0), format)) for row in rows]


LONG = EncodeOptions(max_length=10_000)
