"""The text of a reply becomes messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import TemplateError
from glmtune.model.chatglm.reply import process_response
from glmtune.tool_calls import render_tool_call

WITH_TOOLS: list[dict[str, Any]] = [{"role": "system", "content": "", "tools": [{"name": "t"}]}]


def test_every_reply_of_the_reference_is_read_as_the_original_reads_it(golden: Path) -> None:
    cases = json.loads((golden / "chat.json").read_text(encoding="utf-8"))["process_response"]

    assert len(cases) == 19
    for case in cases:
        content, history = process_response(case["output"], case["history"])
        assert (content, history) == (case["content"], case["new_history"]), case["output"]


def test_a_call_that_made_the_original_raise_comes_back_as_its_text(golden: Path) -> None:
    cases = json.loads((golden / "chat.json").read_text(encoding="utf-8"))

    assert len(cases["process_response_errors"]) == 2
    for case in cases["process_response_errors"]:
        content, history = process_response(case["output"], WITH_TOOLS)
        assert isinstance(content, dict)
        name, text = case["output"].split("\n", 1)
        assert (content["name"], content["content"]) == (name, text)
        assert "error" in content
        assert "parameters" not in content
        assert history[-1] == {"role": "assistant", "metadata": name, "content": text}


def test_the_callers_history_is_not_changed() -> None:
    history = [{"role": "user", "content": "问题"}]

    _, extended = process_response("\n 你好", history)

    assert history == [{"role": "user", "content": "问题"}]
    assert extended[:1] == history
    assert len(extended) == 2


def test_a_reply_to_an_empty_history_is_read() -> None:
    assert process_response("t\n```\ntool_call()\n```", [])[0] == {
        "name": "t",
        "content": "```\ntool_call()\n```",
    }


def test_a_call_with_names_that_are_no_keywords_is_read() -> None:
    arguments = {"from": "北京", "first-name": None, "ａ": {"class": [1]}}

    content, _ = process_response(f"book\n {render_tool_call(arguments)}", WITH_TOOLS)

    assert content == {"name": "book", "parameters": arguments}


@pytest.mark.parametrize("history", [None, 3, "x", {"role": "user"}, [None], ["x"]])
def test_a_history_that_is_no_list_of_messages_is_refused(history: Any) -> None:
    with pytest.raises(TemplateError, match=r"message 0 is|messages of the history are"):
        process_response("\n x", history)


def test_any_text_of_a_reply_is_read_with_any_history() -> None:
    replies = [
        "",
        "\n",
        "t\n",
        "<|assistant|>" * 99,
        "\ud800",
        "t\n" + "(" * 99_999,
        "t\n```\n\0\n```",
    ]
    histories: list[list[dict[str, Any]]] = [[], [{}], [{"role": ["x"]}]]
    histories.append([{"role": "system", "tools": None}])
    for history in histories:
        for reply in replies:
            content, extended = process_response(reply, history)
            assert len(extended) == len(history) + reply.count("<|assistant|>") + 1
            assert isinstance(content, str) or content["name"] == "t"
