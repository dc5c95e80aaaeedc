"""A reply as text becomes messages, and a tool call is read without being run."""

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.conversation import render_tool_call
from glmtune.model.chatglm.reply import parse_tool_call, process_response

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


def test_a_call_is_never_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    attempts = [
        f"open({str(witness)!r}, 'w')",
        f"tool_call(a=open({str(witness)!r}, 'w'))",
        f"[tool_call(a=1), open({str(witness)!r}, 'w')]",
        f"tool_call(**{{'a': open({str(witness)!r}, 'w')}})",
        f"tool_call(a=f'{{open({str(witness)!r}, chr(119))}}')",
        f"(lambda: open({str(witness)!r}, 'w'))()",
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"tool_call|literal"):
            parse_tool_call(f"```python\n{attempt}\n```")

    assert not witness.exists()


@pytest.mark.parametrize(
    "source",
    [
        "",
        "tool_call(1)",
        "tool_call(*[1])",
        "tool_call(a=1, a=2)",
        "tool_call(a=b)",
        "tool_call(a={1, 2})",
        "tool_call(a=b'x')",
        "tool_call(a=1e999)",
        "tool_call(a=1+2j)",
        "other_call(a=1)",
        "tool_call",
        "tool_call(a=" + "(" * 5000,
        "tool_call(a='\0')",
    ],
)
def test_a_malformed_call_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"tool_call|literal"):
        parse_tool_call(f"```python\n{source}\n```")


def test_what_the_training_data_writes_is_what_the_reply_reads() -> None:
    arguments = {"城市": "北京\n'\"", "days": -2, "list": [1.5, None, True, {"k": "值"}]}

    assert parse_tool_call(render_tool_call(arguments)) == arguments
