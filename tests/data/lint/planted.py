"""Rows without a fault, and how the lint tests plant faults among them and read what was found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.data.lint.findings import Finding
from glmtune.data.lint.report import LintReport
from glmtune.recipe.sections import DataSection

# Of many kinds, and each with something that a coarser check would take for a fault.
CLEAN = [
    ("介绍一下北京的历史。", "北京有三千多年的历史，是中国的首都。"),
    ("什么是机器学习？", "机器学习是让计算机从数据中学习规律的方法。"),
    ("把下面的句子翻译成英文：我喜欢在图书馆读书。", "I like to read books in the library."),
    ("Translate into Chinese: the weather is fine today.", "今天天气很好，适合出去走走。"),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so it reaches us."),
    (
        "用 Python 写一个打印你好的程序。",
        "```python\n# TODO: greet by name\nprint(f'{{name}}')\n```",
    ),
    ("写一段划掉文字的 HTML。", "<p>价格：<s>一百元</s> 八十元</p>"),
    ("<BR> 标签是做什么的？", "<BR> 让后面的文字另起一行，例如 <P>上</P><BR><P>下</P>。"),
    ("尼古拉·哥白尼是谁？", "他提出了日心说；水在 100°C 沸腾，误差 ±0.5°，电话 138××××5678。"),
    ("Wie heißt „Speisekarte“ kürzer?", "Man sagt auch „MENÜ“, in Brasilien São Paulo: café."),
    ("计算：3 + 4 等于多少？", "7"),
    ("计算：3 + 5 等于多少？", "8"),
    ("写一封请假邮件，署名写 [您的姓名]。", "经理您好：我明天请假一天。[您的姓名]"),
    ("你是谁？", "我是小智，一个人工智能助手，可以帮你写作和学习。"),
    ("人工智能语言模型是什么？", "它是一种预测下一个词的程序，读过很多文字。"),
    ("公司的 sop 流程怎么写？", "先写目的，再写步骤，最后写负责人。"),
    ("数组 [name] 怎么取值？", "用下标，见[文档](https://example.org)。"),
    ("<audio> 标签怎么用？", "写 <audio> 和它的 src 属性，浏览器就会播放声音。"),
    ("“今天”用日语怎么说？", "今日（きょう）と言います。とても簡単ですね。"),
    ("列出三种水果。", "1. 苹果\n2. 香蕉\n3. 橙子"),
    ("什么时候说对不起？", "做错事的时候，要真诚地说对不起，并且改正。"),
]


NUM_CLEAN = len(CLEAN)
AT = 7  # a fault is planted in front of this row, so on this line, counted from 1


def alpaca(question: str, answer: str) -> dict[str, Any]:
    return {"instruction": question, "input": "", "output": answer}


def write(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return str(path)


def clean_rows() -> list[dict[str, Any] | str]:
    return [alpaca(*row) for row in CLEAN]


def section(path: str, **values: Any) -> DataSection:
    return DataSection.model_validate({"train": path, "bad_rows": "skip", **values})


def found(report: LintReport) -> list[tuple[str, int, str]]:
    return [(finding.check, finding.line, finding.severity) for finding in report.findings]


def only(report: LintReport) -> Finding:
    assert len(report.findings) == 1, found(report)
    return report.findings[0]


def chat(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **fields}


STORY = "从前有一座山，山上有一座庙，庙里有一个老和尚和一个小和尚，老和尚每天给小和尚讲故事听。"
NEAR_STORY = STORY.replace("每天", "天天")


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"instruction": question, "input": "", "chosen": chosen, "rejected": rejected}


CLEAN_PAIRS = [pair(question, answer, f"我说不好，{index}。") for index, (question, answer) in
               enumerate(CLEAN)]  # fmt: skip


LONG_ANSWER = "很长" * 160
