"""A thought in a field of its own is read where the template has a place for it, else reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.template.glm_templates import GLM_4_5, GLM_4_9B, glm_tokenizer

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.formats import FORMATS, convert
from glmtune.data.rows import Row, RowError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.base import Template
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.select import template_for

ANSWER = {"role": "assistant", "content": "答", "reasoning_content": "想一想"}
ROW = {"messages": [{"role": "user", "content": "问"}, ANSWER]}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW], ensure_ascii=False), encoding="utf-8")
    return path


def test_a_template_with_a_place_for_thoughts_learns_them(rows: Path, tmp_path: Path) -> None:
    tokenizer = glm_tokenizer(GLM_4_5)
    encoded = encode_data(
        rows, template_for(tokenizer), EncodeOptions(200), cache_dir=tmp_path / "cache"
    )

    assert "<think>想一想</think>\n答<|user|>" in tokenizer.decode(encoded[0].input_ids)
    assert not encoded.report.unread


@pytest.mark.parametrize("family", ["chatglm", "glm-4-9b"])
def test_another_template_reports_them(
    rows: Path, tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, family: str
) -> None:
    template: Template = ChatGLMTemplate(tiny_tokenizer)
    if family != "chatglm":
        template = template_for(glm_tokenizer(GLM_4_9B))
    encoded = encode_data(rows, template, EncodeOptions(200), cache_dir=tmp_path / "cache")

    assert list(encoded.report.unread) == ["messages[].reasoning_content"]
    bare = tmp_path / "bare.json"
    question, answer = ROW["messages"]
    bare.write_text(
        json.dumps([{"messages": [question, {**answer, "reasoning_content": ""}]}]), "utf-8"
    )
    same = encode_data(bare, template, EncodeOptions(200), cache_dir=tmp_path / "cache")
    assert encoded[0] == same[0]


@pytest.mark.parametrize(("content", "remark"), [("我查", ["我查"]), (None, [])])
def test_a_thought_goes_with_the_remark_or_with_the_first_call(
    content: str | None, remark: list[str]
) -> None:
    calls: list[Any] = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b")]
    answer = {**ANSWER, "content": content, "tool_calls": calls}
    row = Row({"messages": [ROW["messages"][0], answer]}, "rows.json", 1)

    _, *answers = convert(row, FORMATS["openai"])

    assert [each.reasoning for each in answers] == ["想一想", *[""] * (1 + len(remark))]


def test_a_thought_that_is_no_text_is_a_bad_row(tmp_path: Path) -> None:
    answer = {**ANSWER, "reasoning_content": ["a"]}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"messages": [ROW["messages"][0], answer]}]), "utf-8")

    with pytest.raises(RowError, match=r"messages\[1\]\.reasoning_content"):
        encode_data(
            path, template_for(glm_tokenizer(GLM_4_5)), EncodeOptions(200), cache_dir=tmp_path
        )
