"""Templates to encode with, and a cache folder of each test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.data.encoding import CountingTemplate

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer


@pytest.fixture
def template(tiny_tokenizer: ChatGLMTokenizer) -> CountingTemplate:
    template = CountingTemplate(tiny_tokenizer)
    assert template.fingerprint  # it encodes its probes for that
    template.num_encoded = 0
    return template


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture(scope="module")
def chatglm3(golden: Path) -> ChatGLMTokenizer:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

    tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(golden / "chatglm3-tokenizer")
    return tokenizer
