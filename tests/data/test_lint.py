"""Faults planted among good rows are found on their line; good rows give no finding."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.lint.clean_copy import write_clean_copy
from glmtune.data.lint.findings import CHECKS, Finding
from glmtune.data.lint.report import LintReport
from glmtune.data.lint.run import lint_data, refuse_errors
from glmtune.data.lint.tokens import LengthCost, Lengths
from glmtune.data.lint.twins import minhash
from glmtune.errors import DataError, OutputError, RecipeError
from glmtune.model.load import load_tokenizer
from glmtune.recipe.choices import Layout
from glmtune.recipe.sections import DataSection, LintSection
from glmtune.template.base import Template
from glmtune.template.select import template_for

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


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., str]:
    """Write the clean rows with others among them, the first at line `AT`."""

    def plant(*rows: Mapping[str, Any] | str) -> str:
        good = clean_rows()
        return write(tmp_path / "rows.jsonl", [*good[: AT - 1], *rows, *good[AT - 1 :]])

    return plant


@pytest.fixture(scope="module")
def template_of(tiny_model_dir: Path) -> Callable[[Layout], Template]:
    tokenizer = load_tokenizer(tiny_model_dir)
    return lambda layout: template_for(tokenizer, layout)


def section(path: str, **values: Any) -> DataSection:
    return DataSection.model_validate({"train": path, "bad_rows": "skip", **values})


def found(report: LintReport) -> list[tuple[str, int, str]]:
    return [(finding.check, finding.line, finding.severity) for finding in report.findings]


def only(report: LintReport) -> Finding:
    assert len(report.findings) == 1, found(report)
    return report.findings[0]


@pytest.mark.parametrize("layout", ["official", "tutorial", "plain", None])
def test_clean_rows_give_no_finding(
    tmp_path: Path, template_of: Callable[[Layout], Template], layout: Layout | None
) -> None:
    path = write(tmp_path / "rows.jsonl", clean_rows())

    report = lint_data(section(path), template_of(layout) if layout else None)

    assert found(report) == []
    assert report.num_rows == NUM_CLEAN
    assert set(report.not_checked) == (set() if layout else {"no-stop", "cut-answer", "length"})


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


def chat(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **fields}


@pytest.mark.parametrize(
    ("check", "severity", "row"),
    [
        ("role-order", "warning", chat(("user", "一"), ("user", "二"), ("assistant", "三"))),
        ("role-order", "warning", chat(("user", "一"), ("narrator", "二"), ("assistant", "三"))),
        ("role-order", "warning", chat(("user", "一"), ("assistant", "二"), ("user", "三"))),
        ("role-order", "warning", chat(("user", "一"), ("assistant", "二"), ("assistant", "三"))),
        ("no-label", "warning", chat(("system", "一"), ("user", "二"))),
        ("empty-answer", "warning", chat(("user", "一"), ("assistant", ""))),
        ("empty-answer", "error", chat(("user", "一"), ("assistant", " \n"))),  # training takes it
        (
            "no-label",
            "warning",  # training leaves it out
            {
                "messages": [
                    {"role": "user", "content": "一"},
                    {"role": "assistant", "content": "二", "weight": 0},
                ]
            },
        ),
        ("unreadable", "warning", {"messages": "not a list"}),
        ("unreadable", "warning", "{broken"),
        ("encoding", "warning", '{"messages": "\udce9"}'),  # a byte of latin-1
        ("encoding", "warning", r'{"messages": [{"role": "user", "content": "\ud800"},'
        r' {"role": "assistant", "content": "a"}]}'),
    ],
)  # fmt: skip
def test_a_wrong_row_of_a_chat_is_found_on_its_line(
    tmp_path: Path, check: str, severity: str, row: Mapping[str, Any] | str
) -> None:
    good = [chat(("user", question), ("assistant", answer)) for question, answer in CLEAN]
    path = write(tmp_path / "chats.jsonl", [*good[: AT - 1], row, *good[AT - 1 :]])

    report = lint_data(section(path))

    assert found(report) == [(check, AT, severity)]


def test_a_row_that_cannot_be_used_is_an_error_where_training_would_stop(
    plant: Callable[..., str],
) -> None:
    path = plant("{broken")

    assert only(lint_data(section(path, bad_rows="fail"))).severity == "error"
    assert only(lint_data(section(path, bad_rows="skip"))).severity == "warning"


# --- Tokens -------------------------------------------------------------------------------

LONG = alpaca("数数", "一二三四五六七八九十" * 30)


def test_the_tutorials_cut_loses_the_stop_and_a_part_of_the_answer(
    plant: Callable[..., str], template_of: Callable[[Layout], Template]
) -> None:
    data = section(plant(LONG), max_length=200, overlong="tutorial", layout="tutorial")

    report = lint_data(data, template_of("tutorial"))

    # Warnings, since overlong=tutorial asks for the cut.
    assert found(report) == [("no-stop", AT, "warning"), ("cut-answer", AT, "warning")]
    assert "after token 200 without a stop token" in report.findings[0].message


def test_a_cut_between_two_turns_leaves_the_stop_of_the_first_answer(
    tmp_path: Path, template_of: Callable[[Layout], Template]
) -> None:
    template = template_of("official")
    row = chat(("user", "一"), ("assistant", "二"), ("user", "三" * 90), ("assistant", "四"))
    path = write(tmp_path / "chats.jsonl", [row])

    report = lint_data(section(path, max_length=60, overlong="tutorial"), template)

    assert found(report) == [("cut-answer", 1, "warning")]


@pytest.mark.parametrize(
    ("overlong", "row", "expected"),
    [
        ("drop", LONG, [("length", "warning")]),
        ("truncate_prompt", alpaca("一二三四五" * 90, "好"), [("length", "info")]),
        ("truncate_prompt", LONG, [("length", "warning")]),
        ("tutorial", alpaca("一二三四五" * 90, "好"), [("no-label", "warning")]),
    ],
)
def test_what_becomes_of_a_long_row_is_said(
    plant: Callable[..., str],
    template_of: Callable[[Layout], Template],
    overlong: str,
    row: Mapping[str, Any],
    expected: list[tuple[str, str]],
) -> None:
    data = section(plant(row), max_length=200, overlong=overlong)

    report = lint_data(data, template_of("official"))

    assert found(report) == [(check, AT, severity) for check, severity in expected]


def test_an_answer_that_goes_on_into_what_is_not_learned_never_stops(
    tmp_path: Path, template_of: Callable[[Layout], Template]
) -> None:
    turns = [
        {"role": "user", "content": "北京天气？"},
        {"role": "assistant", "content": "我查一下。", "loss": True},
        {"role": "tool", "name": "w", "parameters": {}, "observation": "3", "loss": False},
        {"role": "assistant", "content": "三度。", "loss": False},
    ]
    path = write(tmp_path / "rows.jsonl", [{"conversations": turns}])

    finding = only(lint_data(section(path), template_of("official")))

    assert (finding.check, finding.severity) == ("no-stop", "error")


def test_a_row_that_a_layout_cannot_render_is_found(
    tmp_path: Path, template_of: Callable[[Layout], Template]
) -> None:
    good = [chat(("user", question), ("assistant", answer)) for question, answer in CLEAN]
    row = chat(("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四"))
    path = write(tmp_path / "chats.jsonl", [*good[:2], row, *good[2:]])

    report = lint_data(section(path, layout="plain"), template_of("plain"))

    assert found(report) == [("unreadable", 3, "warning")]


def test_lengths_say_what_a_limit_would_cost() -> None:
    lengths = Lengths([*range(1, 100), 300], "tokens", limit=200)

    assert lengths.percentiles() == {50: 50, 90: 90, 95: 95, 99: 99, 100: 300}
    assert lengths.costs() == [
        LengthCost(64, num_overlong=36, lost_if_dropped=sum(range(65, 100)) + 300, lost_if_cut=866),
        LengthCost(128, num_overlong=1, lost_if_dropped=300, lost_if_cut=172),
        LengthCost(200, num_overlong=1, lost_if_dropped=300, lost_if_cut=100),
        LengthCost(256, num_overlong=1, lost_if_dropped=300, lost_if_cut=44),
        LengthCost(512, num_overlong=0, lost_if_dropped=0, lost_if_cut=0),
    ]


# --- Rows beside each other ---------------------------------------------------------------

STORY = "从前有一座山，山上有一座庙，庙里有一个老和尚和一个小和尚，老和尚每天给小和尚讲故事听。"
NEAR_STORY = STORY.replace("每天", "天天")


def test_the_second_of_two_equal_rows_is_a_duplicate(plant: Callable[..., str]) -> None:
    path = plant(alpaca("讲故事", STORY), alpaca("数到三", "一二三"), alpaca("讲故事", STORY))

    finding = only(lint_data(section(path)))

    assert (finding.check, finding.line) == ("duplicate", AT + 2)
    assert finding.other == f"{path}:{AT}"
    assert finding.excerpt == "讲故事"


def test_a_word_or_a_letters_case_makes_a_near_duplicate(plant: Callable[..., str]) -> None:
    long = STORY + NEAR_STORY * 3
    path = plant(
        alpaca("请讲故事", long),
        alpaca("Count to two, please", "one two"),
        alpaca("请讲故事", long + "完。"),
        alpaca("count to  two, please", "One two"),
    )

    report = lint_data(section(path))

    assert found(report) == [
        ("near-duplicate", AT + 2, "warning"),
        ("near-duplicate", AT + 3, "warning"),
    ]
    assert [finding.other for finding in report.findings] == [f"{path}:{AT}", f"{path}:{AT + 1}"]


def test_how_near_is_near_can_be_said(plant: Callable[..., str]) -> None:
    path = plant(alpaca("请讲故事", STORY), alpaca("请讲故事", NEAR_STORY))

    assert only(lint_data(section(path))).check == "contradiction"
    assert only(lint_data(section(path), lint=LintSection(near_duplicate=0.7))).check == (
        "near-duplicate"
    )


def test_one_answer_to_many_questions_is_no_duplicate(plant: Callable[..., str]) -> None:
    path = plant(alpaca("讲一个山的故事", STORY), alpaca("给我说说老和尚吧", STORY))

    assert found(lint_data(section(path))) == []


def test_two_short_answers_to_one_prompt_contradict_each_other(plant: Callable[..., str]) -> None:
    question = "这句话的情感是什么：今天真高兴！"
    path = plant(
        alpaca(question, "正面"),
        alpaca(question, "负面"),
        alpaca("写一个故事", STORY),
        alpaca("写一个故事", "很久以前，海边住着一位老渔夫，他每天清晨出海，傍晚回家，日子平静。"),
    )

    assert found(lint_data(section(path))) == [
        ("contradiction", AT + 1, "warning"),
        ("contradiction", AT + 3, "info"),  # stories differ
    ]


def test_a_held_out_row_that_is_learned_is_a_leak(tmp_path: Path) -> None:
    rows = [*clean_rows(), alpaca("请讲故事", (STORY + NEAR_STORY) * 3)]
    train = write(tmp_path / "train.jsonl", rows)
    held_out = write(
        tmp_path / "eval.jsonl",
        [
            alpaca("天上有几个太阳？", "一个。"),
            alpaca("什么是 机器学习？", "一门学问。"),
            alpaca("请讲故事吧", (STORY + NEAR_STORY) * 3),
            alpaca("请讲故事", (STORY + NEAR_STORY) * 3 + "完"),
        ],
    )

    report = lint_data(section(train, eval=held_out))

    leaks = [finding for finding in report.findings if finding.check == "leak"]
    assert [(leak.line, leak.severity) for leak in leaks] == [(2, "error"), (4, "error")]
    assert all(leak.file == held_out and leak.is_held_out for leak in leaks)
    assert [leak.other for leak in leaks] == [f"{train}:2", f"{train}:{NUM_CLEAN + 1}"]
    assert report.num_eval_rows == 4


def test_a_row_nearly_like_a_learned_one_is_a_leak(tmp_path: Path) -> None:
    question = "，".join(answer for _, answer in CLEAN) + "，一共有几句？"
    train = write(tmp_path / "train.jsonl", [*clean_rows(), alpaca(question, "二十句。")])
    held_out = write(tmp_path / "eval.jsonl", [alpaca(f"请问，{question}", "二十句。")])

    finding = only(lint_data(section(train, eval=held_out)))

    assert (finding.check, finding.severity, finding.file) == ("leak", "warning", held_out)


def test_a_duplicate_across_the_split_is_a_leak(tmp_path: Path) -> None:
    rows = [*clean_rows(), *clean_rows()]  # some row is surely held out without its twin
    path = write(tmp_path / "rows.jsonl", rows)

    report = lint_data(section(path, eval_fraction=0.2), seed=1)

    leaks = [finding for finding in report.findings if finding.check == "leak"]
    duplicates = [finding for finding in report.findings if finding.check == "duplicate"]
    assert leaks
    assert all(leak.severity == "warning" for leak in leaks)  # as a duplicate elsewhere
    assert all(abs(int(leak.other.rsplit(":")[-1]) - leak.line) == NUM_CLEAN for leak in leaks)
    assert len(leaks) + len(duplicates) == NUM_CLEAN


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_a_digest_does_not_depend_on_the_texts_beside_it(texts: list[str]) -> None:
    plain = [text.replace("\0", "") for text in texts if text.isprintable()] or [""]

    together = minhash(plain)

    assert np.array_equal(together, np.concatenate([minhash([text]) for text in plain]))


# --- Which checks, and from where on ------------------------------------------------------


def test_a_check_that_is_off_finds_nothing_and_says_so(plant: Callable[..., str]) -> None:
    path = plant(alpaca("你叫什么？", "我叫 {{name}}，很高兴认识你。"))

    report = lint_data(section(path), lint=LintSection(off=("placeholder",)))

    assert found(report) == []
    assert report.not_checked["placeholder"] == "switched off by lint.off"
    assert "placeholder" not in report.counts()


@pytest.mark.parametrize("name", ["near-duplicates", "unreadable"])
def test_a_check_that_does_not_exist_or_must_not_be_off_is_refused(
    plant: Callable[..., str], name: str
) -> None:
    with pytest.raises(RecipeError, match=name):
        lint_data(section(plant(alpaca("问", "答"))), lint=LintSection(off=(name,)))


def test_the_json_holds_every_finding(plant: Callable[..., str]) -> None:
    rows = [alpaca(f"第 {number} 个问题：{CLEAN[number][0]}", "{{name}}") for number in range(12)]

    report = lint_data(section(plant(*rows)), lint=LintSection(off=("near-duplicate",)))
    tree = json.loads(report.to_json())

    assert tree["errors"] == 12 == len([f for f in tree["findings"] if f["severity"] == "error"])
    assert tree["findings"][0]["line"] == AT
    assert tree["lengths"]["unit"] == "characters"
    [placeholder] = [check for check in tree["checks"] if check["id"] == "placeholder"]
    assert placeholder["error"] == 12
    assert placeholder["remedy"] == CHECKS["placeholder"].remedy


# --- Errors stop a training ---------------------------------------------------------------


def test_errors_stop_a_training_and_name_the_place_the_check_and_the_way_out(
    plant: Callable[..., str],
) -> None:
    path = plant(*(alpaca(f"{name}是谁？", "我是 {{name}}。") for name in "甲乙丙丁戊己庚"))
    lint = LintSection(off=("near-duplicate",))
    report = lint_data(section(path), lint=lint)

    with pytest.raises(DataError) as caught:
        refuse_errors(report, lint)

    first, *lines, more, remedy, advice = str(caught.value).splitlines()
    assert first == "lint found errors in the rows:"
    assert lines == [
        f"{path}:{AT + n}: placeholder: {{{{name}}}} was never filled in." for n in range(5)
    ]
    assert more == "... 7 errors in all: 7 placeholder"
    assert remedy == f"placeholder: {CHECKS['placeholder'].remedy}"  # once, not on each line
    assert "lint.errors=report" in advice
    assert "lint.off=[placeholder]" in advice


def test_errors_are_only_reported_when_a_key_says_so(plant: Callable[..., str]) -> None:
    report = lint_data(section(plant(alpaca("你是谁？", "我是 {{name}}。"))))
    assert report.count("error") == 1

    refuse_errors(report, LintSection(errors="report"))


def test_warnings_and_rows_that_training_skips_do_not_stop_it(plant: Callable[..., str]) -> None:
    path = plant(alpaca("空", ""), "{broken", alpaca("讲故事", STORY), alpaca("讲故事", STORY))
    report = lint_data(section(path))
    assert [finding.severity for finding in report.findings] == ["warning"] * 3

    refuse_errors(report, LintSection())
    with pytest.raises(DataError, match=rf":{AT}: empty-answer: field 'output': the answer is"):
        refuse_errors(lint_data(section(path, bad_rows="fail")), LintSection())


def test_a_row_that_cannot_be_used_is_not_offered_to_be_trained_on(
    plant: Callable[..., str],
) -> None:
    report = lint_data(section(plant("{broken"), bad_rows="fail"))

    with pytest.raises(DataError, match=r"unreadable: .*bad_rows: skip") as caught:
        refuse_errors(report, LintSection())
    assert "lint.errors" not in str(caught.value)


# --- The clean copy -----------------------------------------------------------------------


def test_a_clean_copy_lacks_the_worst_rows_and_changes_no_other(
    plant: Callable[..., str], tmp_path: Path
) -> None:
    kept = alpaca("你叫什么？", "我叫 {{name}}，\u2028很高兴。") | {"source": {"id": 7, "x": None}}
    path = plant(alpaca("空", ""), "{broken", kept, alpaca(*CLEAN[0]), chat(("user", "一")))
    before = Path(path).read_bytes()
    data = section(path)

    counts = write_clean_copy(data, lint_data(data), tmp_path / "clean.jsonl")

    lines = (tmp_path / "clean.jsonl").read_text(encoding="utf-8").split("\n")
    good = clean_rows()
    assert [json.loads(line) for line in lines if line] == [*good[: AT - 1], kept, *good[AT - 1 :]]
    assert counts == (NUM_CLEAN + 1, 4)
    assert Path(path).read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clean.jsonl", "rows.jsonl"]


def test_a_clean_copy_finds_the_rows_of_a_file_that_has_only_one_line(tmp_path: Path) -> None:
    rows = [alpaca(*CLEAN[0]), alpaca("空", " "), alpaca(*CLEAN[1]), alpaca(*CLEAN[0])]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    data = section(str(path))

    write_clean_copy(data, lint_data(data), tmp_path / "clean.jsonl")

    lines = (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [rows[0], rows[2]]


def test_a_clean_copy_never_overwrites(plant: Callable[..., str], tmp_path: Path) -> None:
    path = plant()
    data = section(path)
    (tmp_path / "there.jsonl").write_text("mine")

    for target in (Path(path), tmp_path / "there.jsonl"):
        with pytest.raises(OutputError, match="exists already"):
            write_clean_copy(data, lint_data(data), target)

    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_general_rows_are_looked_at_and_are_no_part_of_the_clean_copy(
    tmp_path: Path, template_of: Callable[[Layout], Template]
) -> None:
    path = write(tmp_path / "rows.jsonl", clean_rows())
    faulty = [chat(("user", "什么是雪？"), ("assistant", "雪是锟斤拷。"))]
    general = write(
        tmp_path / "general.jsonl", [chat(("user", "一"), ("assistant", "二")), *faulty]
    )
    replay = {"path": general, "ratio": 0.5}
    data = section(path, replay=replay, eval_fraction=0.9, columns={"query": "input"})

    report = lint_data(data, template_of("official"))

    assert (only(report).check, only(report).file, only(report).line) == ("encoding", general, 2)
    assert report.num_rows == NUM_CLEAN + 2
    assert write_clean_copy(data, report, tmp_path / "clean.jsonl") == (NUM_CLEAN, 0)


def test_a_general_row_that_is_learned_is_a_leak(
    tmp_path: Path, template_of: Callable[[Layout], Template]
) -> None:
    rows = clean_rows()
    path = write(tmp_path / "rows.jsonl", rows)
    fresh = chat(("user", "一"), ("assistant", "二"))
    question = "\n".join(filter(None, (rows[2]["instruction"], rows[2].get("input"))))
    learned = chat(("user", question), ("assistant", rows[2]["output"]))
    healthy = write(tmp_path / "healthy.jsonl", [fresh])
    faulty = write(tmp_path / "faulty.jsonl", [fresh, learned])
    data = section(path, eval_fraction=0.0)

    assert not lint_data(data, template_of("official"), general=(healthy,)).findings
    leak = only(lint_data(data, template_of("official"), general=(faulty,)))
    assert (leak.check, leak.file, leak.line) == ("leak", faulty, 2)


def test_general_rows_change_nothing_of_what_is_held_out(
    tmp_path: Path, template_of: Callable[[Layout], Template]
) -> None:
    rows = clean_rows()
    path = write(tmp_path / "rows.jsonl", [*rows, *rows[:3]])
    fresh = [
        chat(("user", f"{n} 的下一个数是几？"), ("assistant", f"是 {n + 1}。")) for n in range(9)
    ]
    general = write(tmp_path / "general.jsonl", fresh)
    data, template = section(path, eval_fraction=0.3), template_of("official")

    def leaks(seed: int, *general: str) -> list[int]:
        report = lint_data(data, template, seed=seed, general=general)
        return [each.line for each in report.findings if each.check == "leak"]

    found = [leaks(seed) for seed in range(6)]
    assert any(found)
    assert [leaks(seed, general) for seed in range(6)] == found


def test_a_clean_copy_of_two_formats_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", clean_rows())
    second = write(tmp_path / "b.jsonl", [chat(("user", "一加一等于几"), ("assistant", "二"))])
    data = DataSection(train=(first, second))

    with pytest.raises(DataError, match="alpaca, openai"):
        write_clean_copy(data, lint_data(data), tmp_path / "clean.jsonl")


# --- Real rows ----------------------------------------------------------------------------


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
        "alpaca_zh_1000": {"placeholder": 7, "refusal": 19, "language-mix": 5},
        "toolcall_zh": {"role-order": 2, "refusal": 24, "language-mix": 4},
    }[name]
    assert {check: count for check, count in counts.items() if count} == {
        **expected,
        "duplicate": duplicates,
    }
    assert report.count("error") == 0


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"instruction": question, "input": "", "chosen": chosen, "rejected": rejected}


CLEAN_PAIRS = [pair(question, answer, f"我说不好，{index}。") for index, (question, answer) in
               enumerate(CLEAN)]  # fmt: skip
LONG_ANSWER = "很长" * 160


@pytest.fixture
def plant_pair(tmp_path: Path) -> Callable[..., str]:
    """Write clean pairs with another among them, at line `AT`."""

    def plant(*rows: Mapping[str, Any]) -> str:
        pairs = [*CLEAN_PAIRS[: AT - 1], *rows, *CLEAN_PAIRS[AT - 1 :]]
        return write(tmp_path / "pairs.jsonl", pairs)

    return plant


def test_clean_pairs_give_no_finding(
    plant_pair: Callable[..., str], template_of: Callable[[str], Template]
) -> None:
    spread = pair(CLEAN[AT - 2][0], CLEAN[AT - 2][1], "又一个差的回答。")  # to the row before
    refused = pair(
        "怎么折纸飞机？", "先对折，再折两角。", "对不起，作为一个人工智能语言模型，我不能回答。"
    )

    report = lint_data(section(plant_pair(refused)), template_of("official"), pairs=True)
    doubled = lint_data(section(plant_pair(spread)), template_of("official"), pairs=True)

    assert found(report) == []
    assert {finding.check for finding in doubled.findings} <= {"near-duplicate"}


@pytest.mark.parametrize(
    ("planted", "check", "severity", "said"),
    [
        (
            pair("为什么？", "因为。", ""),
            "empty-answer",
            "error",
            "field 'rejected': the answer is",
        ),
        (pair("为什么？", "因为。", " \n"), "empty-answer", "error", "the answer is empty"),
        (pair("为什么？", "因为。", "因为。"), "same-answers", "error", "the chosen answer again"),
        (
            pair("为什么？", "因为 它。", "因为它。\n"),
            "same-answers",
            "error",
            "only by white space",
        ),
        (
            pair("为什么？", "因为。", LONG_ANSWER),
            "length",
            "warning",
            "left out: 976 tokens are more than data.max_length 200",
        ),
        (pair("为什么？", "因为。", "他<|user|>说"), "role-marker", "error", "rejected answer: "),
        (pair("为什么？", "因为。", "乱\ufffd码"), "encoding", "error", "rejected answer: U+FFFD"),
        (pair("为什么？", "乱\ufffd码", "因为。"), "encoding", "error", "U+FFFD"),
    ],
)
def test_a_fault_of_either_answer_of_a_pair_is_found_on_its_line(
    plant_pair: Callable[..., str],
    template_of: Callable[[str], Template],
    planted: dict[str, Any],
    check: str,
    severity: str,
    said: str,
) -> None:
    data = section(plant_pair(planted), max_length=200, bad_rows="fail")

    finding = only(lint_data(data, template_of("official"), pairs=True))

    assert (finding.check, finding.severity, finding.line) == (check, severity, AT)
    assert said in finding.message
    assert lint_data(data, template_of("official"), pairs=None).findings == (finding,)


def test_the_rejected_answer_of_a_pair_is_not_looked_at_where_it_is_not_seen(
    plant_pair: Callable[..., str], template_of: Callable[[str], Template]
) -> None:
    path = plant_pair(pair("为什么？", "因为。", "乱\ufffd码"))

    assert found(lint_data(section(path), template_of("official"))) == []


def test_a_rejected_answer_that_does_not_stop_is_found(
    plant_pair: Callable[..., str], template_of: Callable[[str], Template]
) -> None:
    path = plant_pair(pair("为什么？", "因为。", LONG_ANSWER))
    data = section(path, max_length=200, overlong="tutorial", layout="tutorial")

    report = lint_data(data, template_of("tutorial"), pairs=True)

    told = {finding.check: finding.message for finding in report.findings}
    assert told.keys() == {"cut-answer", "no-stop"}
    assert all(message.startswith("the rejected answer: ") for message in told.values())
    assert {finding.line for finding in report.findings} == {AT}


def test_a_clean_copy_of_pairs_lacks_those_that_prefer_nothing(
    plant_pair: Callable[..., str], tmp_path: Path
) -> None:
    again = CLEAN_PAIRS[0]
    spread = again | {"rejected": "完全是另一个很不同的差的回答，而且长得多。"}
    path = plant_pair(
        pair("为什么？", "因为。", "因为。"), pair("谁？", "他 。", "他。"), again, spread
    )
    data = section(path)

    counts = write_clean_copy(data, lint_data(data, pairs=True), tmp_path / "clean.jsonl")

    assert counts == (NUM_CLEAN + 1, 3)
    assert spread in [json.loads(line) for line in (tmp_path / "clean.jsonl").open()]


def test_rows_with_one_answer_are_no_pairs(plant: Callable[..., str]) -> None:
    with pytest.raises(DataError, match=r"preference\.stage=dpo needs a better and a worse one"):
        lint_data(section(plant()), pairs=True)
    assert found(lint_data(section(plant()), pairs=None)) == []
