"""Duplicates, near-duplicates, contradictions, and rows shared by training and evaluation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.data.lint.planted import (
    AT,
    CLEAN,
    NEAR_STORY,
    NUM_CLEAN,
    STORY,
    alpaca,
    chat,
    clean_rows,
    found,
    only,
    section,
    write,
)

from glmtune.data.lint.run import lint_data
from glmtune.data.lint.twins import minhash
from glmtune.recipe.choices import Layout
from glmtune.recipe.sections import LintSection
from glmtune.template.base import Template


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


def test_the_threshold_of_near_duplicates_can_be_set(plant: Callable[..., str]) -> None:
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


def test_general_rows_do_not_change_which_rows_are_held_out(
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


def test_a_nul_in_a_text_is_a_character_like_others() -> None:
    digests = minhash(["ab\0cdefgh", "\0", "ab\0cdefgh", "x"])

    assert digests.shape[0] == 4
    assert (digests[0] == digests[2]).all()
    assert (digests[0] != digests[1]).any()
