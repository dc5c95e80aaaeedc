"""The template of a tokenizer is chosen by its family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.template.fast_tokenizers import LLAMA3, fast_tokenizer

from glmtune.errors import TemplateError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.chat_template import ChatTemplate
from glmtune.template.select import template_for


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        template_for(fast_tokenizer(None, "<|im_end|>"))


def test_the_template_is_found_by_the_tokenizer(tiny_tokenizer: ChatGLMTokenizer) -> None:
    assert template_for(tiny_tokenizer, "tutorial").description == {
        "family": "chatglm3",
        "layout": "tutorial",
    }
    llama = fast_tokenizer(LLAMA3, "<|end|>")
    assert isinstance(template_for(llama), ChatTemplate)
    with pytest.raises(TemplateError, match="has its own chat template"):
        template_for(llama, "tutorial")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"_name_or_path": "THUDM/chatglm2-6b"}),
        ("tokenizer_config.json", {"name_or_path": "THUDM/codegeex2-6b"}),
    ],
)
def test_chatglm2_is_recognized_by_its_name_and_refused_a_layout_with_roles(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path, file: str, content: dict[str, str]
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    tokenizer = ChatGLMTokenizer.from_pretrained(tmp_path)

    with pytest.raises(TemplateError, match=r"2-6b, which has no roles.*layout: chatglm2"):
        template_for(tokenizer)
    assert template_for(tokenizer, "chatglm2").description["layout"] == "chatglm2"
    assert template_for(tokenizer, "plain").description["layout"] == "plain"
