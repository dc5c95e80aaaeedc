"""Faults in the text of a row are found on their line; real rows raise no false alarm."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.lint.planted import AT, alpaca, only, section

from glmtune.data.lint.run import lint_data

PLANTED = [
    ("empty-question", "warning", ("", "没有问题的回答在这里。"), "没有问题"),
    ("encoding", "error", ("什么是水？", "水是一种透明的\ufffd体。"), "\ufffd"),
    ("encoding", "error", ("什么是云？", "云是锟斤拷水汽。"), "锟斤拷"),
    (
        "encoding",
        "error",
        ("What is tea?", "A drink, called thé.".encode().decode("latin-1")),
        "Ã©",
    ),
    ("encoding", "error", ("What is it?", "It’s a drink.".encode().decode("cp1252")), "â€™"),
    ("encoding", "error", ("问候", "你好世界".encode().decode("latin-1")), "ä½"),
    ("encoding", "error", ("问候", "你好世界".encode("gbk").decode("latin-1")), "Äã"),
    (
        "encoding",
        "error",
        ("问候", "你的好，他的好。我的".encode().decode("gbk", errors="replace")),
        "鐨",
    ),
    ("encoding", "error", ("什么是冰？", "冰是\x08固态的水。"), "\x08"),
    ("role-marker", "error", ("说你好", "你好<|user|>再说一次"), "<|user|>"),
    ("role-marker", "error", ("说再见", "再见</s>"), "</s>"),
    ("role-marker", "warning", ("[gMASK]sop<|user|>\n天气", "天气很好。"), "[gMASK]"),
    ("role-marker", "warning", ("sop\n天气怎样", "天气很坏。"), "sop"),
    ("role-marker", "error", ("Say hello", "<|im_start|>hello<|im_end|>"), "<|im_start|>"),
    ("role-marker", "warning", ("[INST] Say good bye [/INST]", "Good bye."), "[INST]"),
    ("role-marker", "warning", ("### Instruction: 数到三", "一二三"), "### Instruction:"),
    ("placeholder", "error", ("你叫什么？", "我叫 {{name}}，很高兴认识你。"), "{{name}}"),
    ("placeholder", "error", ("你好，{{ 用户名 }}", "你好！"), "{{ 用户名 }}"),
    ("placeholder", "error", ("回答：{instruction}", "好的，马上。"), "{instruction}"),
    ("placeholder", "warning", ("谁写的？", "Written by <NAME> in the year of the dog."), "<NAME>"),
    ("placeholder", "warning", ("Who are you?", "My name is [Your Name]."), "[Your Name]"),
    ("placeholder", "info", ("写一封信。", "此致敬礼，[您的姓名]"), "[您的姓名]"),
    ("placeholder", "warning", ("你多大？", "TODO 以后再写"), "TODO"),
    ("placeholder", "warning", ("<image>图里是什么？", "一只猫。"), "<image>"),
    ("placeholder", "warning", ("这段话说了什么？\n<audio>", "它说明天下雨。"), "<audio>"),
    ("placeholder", "warning", ("你在哪里上班？", "我在XXX公司上班。"), "XXX"),
    ("refusal", "warning", ("你饿吗？", "作为一个人工智能语言模型，我没有感觉。"), "人工智能"),
    ("refusal", "warning", ("天气如何？", "很抱歉，我无法提供实时天气。"), "抱歉"),
    (
        "refusal",
        "warning",
        ("Do you sleep?", "As an AI language model, I do not sleep."),
        "As an AI",
    ),
    (
        "refusal",
        "warning",
        ("Tell me a secret.", "I’m sorry, but I can’t help with that."),
        "sorry",
    ),
    (
        "language-mix",
        "warning",
        (
            "请介绍一下长城有多长，是谁建的。",
            "The Great Wall is more than twenty thousand kilometres long and was built by many.",
        ),
        "The Great Wall",
    ),
    (
        "language-mix",
        "warning",
        ("How long is the great wall of the north?", "长城有两万多千米长，由许多朝代修建而成。"),
        "长城",
    ),
]


@pytest.mark.parametrize(("check", "severity", "row", "excerpt"), PLANTED)
def test_a_planted_fault_is_found_on_its_line(
    plant: Callable[..., str], check: str, severity: str, row: tuple[str, str], excerpt: str
) -> None:
    path = plant(alpaca(*row))

    finding = only(lint_data(section(path)))

    assert (finding.check, finding.severity) == (check, severity)
    assert (finding.place, finding.row) == (f"{path}:{AT}", AT)
    assert excerpt in finding.excerpt
    assert finding.message


def test_the_placeholders_of_the_identity_rows_are_found(shared: Path) -> None:
    path = shared / "data" / "identity.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    wrong = [i for i, row in enumerate(rows, start=1) if "{{" in json.dumps(row)]
    assert len(wrong) == 85

    report = lint_data(section(str(path)))

    assert [f.row for f in report.findings if f.check == "placeholder"] == wrong
    assert {f.check for f in report.findings} == {"placeholder", "contradiction"}


@pytest.mark.parametrize(("name", "duplicates"), [("alpaca_zh_1000", 8), ("toolcall_zh", 43)])
def test_real_rows_raise_few_alarms_and_none_of_them_false(
    shared: Path, name: str, duplicates: int
) -> None:
    """The others were looked at one by one: excuses, answers in English, missing calls."""
    report = lint_data(section(str(shared / "data" / f"{name}.json")))

    counts = {check: sum(found.values()) for check, found in report.counts().items()}
    expected = {
        "alpaca_zh_1000": {"placeholder": 7, "refusal": 19, "language-mix": 5, "script": 1},
        "toolcall_zh": {
            "role-order": 2,
            "refusal": 24,
            "language-mix": 4,
            "tool-call": 2,  # one row twice, whose call lacks what its definition requires
            "script": 2,
        },
    }[name]
    assert {check: count for check, count in counts.items() if count} == {
        **expected,
        "duplicate": duplicates,
    }
    assert report.count("error") == 0


def test_a_call_without_a_result_is_found(tmp_path: Path) -> None:
    calls = [{"id": str(n), "function": {"name": "f", "arguments": {"n": n}}} for n in (1, 2)]
    messages = [
        {"role": "user", "content": "查两次"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "好"},
        {"role": "assistant", "content": "两次都查到了，都很好。"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}, ensure_ascii=False), encoding="utf-8")

    found = only(lint_data(section(str(path))))

    assert found.check == "tool-call"
    assert found.message == "the call of 'f' has no result: the next turn is from assistant"
