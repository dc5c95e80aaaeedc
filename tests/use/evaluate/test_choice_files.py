"""The published layouts of benchmarks, with rows of our own making."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from glmtune.errors import DataError
from glmtune.use.evaluate.choice import letter_in, prompt_text
from glmtune.use.evaluate.choice_files import ChoiceQuestion, read_choice_files

OPTIONS = ["一", "二", "三", "四"]


def table(path: Path, header: list[str] | None, *records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*([header] if header else []), *records])


def read(folder: Path) -> list[ChoiceQuestion]:
    return list(read_choice_files((str(folder),)).questions)


def places(questions: list[ChoiceQuestion]) -> list[tuple[str, str, str | None]]:
    return [(each.subject, each.split, each.answer) for each in questions]


def test_c_eval_names_subject_and_split_in_its_files_and_keeps_the_answers_of_test(
    tmp_path: Path,
) -> None:
    header = ["id", "question", "A", "B", "C", "D"]
    row = [0, "下列____是数字", *OPTIONS]
    table(tmp_path / "dev/accountant_dev.csv", [*header, "answer", "explanation"], [*row, "B", "x"])
    table(tmp_path / "val/accountant_val.csv", [*header, "answer"], [*row, "C"], [*row, "A"])
    table(tmp_path / "test/accountant_test.csv", header, row)

    questions = read(tmp_path)

    assert places(questions) == [
        ("accountant", "dev", "B"), ("accountant", "test", None),
        ("accountant", "val", "C"), ("accountant", "val", "A"),
    ]  # fmt: skip
    assert questions[3].line == 3
    assert prompt_text(questions[2], questions[:1]) == (
        "以下是中国关于注册会计师考试的单项选择题，请选出其中的正确答案。\n\n"
        "下列____是数字\nA. 一\nB. 二\nC. 三\nD. 四\n答案：B\n\n"
        "下列____是数字\nA. 一\nB. 二\nC. 三\nD. 四\n答案："
    )


def test_cmmlu_has_the_split_as_folder_and_its_own_words(tmp_path: Path) -> None:
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    table(tmp_path / "dev/agronomy.csv", header, [0, "问", *OPTIONS, "D"])
    table(tmp_path / "test/agronomy.csv", header, [0, "又问", *OPTIONS, "A"])

    questions = read(tmp_path)

    assert places(questions) == [("agronomy", "dev", "D"), ("agronomy", "test", "A")]
    assert prompt_text(questions[1], questions[:1]) == (
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"
        "题目：问\nA. 一\nB. 二\nC. 三\nD. 四\n答案是：D\n\n"
        "题目：又问\nA. 一\nB. 二\nC. 三\nD. 四\n答案是："
    )


def test_mmlu_has_no_header_and_its_training_rows_are_no_subject(tmp_path: Path) -> None:
    table(tmp_path / "dev/college_law_dev.csv", None, ["Which?", "a, b", "a, b", "c", "d", "C"])
    table(tmp_path / "test/college_law_test.csv", None, ["Is it\nso?", "0", "4", "2", "6", "B"])
    table(tmp_path / "auxiliary_train/race.csv", None, ["Which?", "a", "b", "c", "d", "C"])

    questions = read(tmp_path)

    assert places(questions) == [("college_law", "dev", "C"), ("college_law", "test", "B")]
    assert prompt_text(questions[1], questions[:1]) == (
        "The following are multiple choice questions (with answers) about college law.\n\n"
        "Which?\nA. a, b\nB. a, b\nC. c\nD. d\nAnswer: C\n\n"
        "Is it\nso?\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:"
    )


def test_a_folder_of_the_hub_has_parquet_files_by_subject_and_a_copy_of_all(
    tmp_path: Path,
) -> None:
    rows = {"question": ["Q?"], "subject": ["anatomy"], "choices": [["a", "b"]], "answer": [1]}
    plain = {"id": [0], "question": ["问"], "A": ["一"], "B": ["二"], "C": ["三"], "D": ["四"],
             "answer": ["D"], "explanation": [""]}  # fmt: skip
    for name, columns in (("all", rows), ("anatomy", rows), ("logic", plain)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "test-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    questions = read(tmp_path)

    assert places(questions) == [("anatomy", "test", "B"), ("logic", "test", "D")]
    assert [each.style for each in questions] == ["mmlu", "ceval"]


def test_gaokao_questions_of_two_benchmarks_are_read(tmp_path: Path) -> None:
    lines = [
        {"passage": "材料", "question": "问", "options": ["(A)一", "(B)二"], "label": "B",
         "answer": None},
        {"passage": None, "question": "多选", "options": ["(A)一", "(B)二"], "label": "AB"},
        {"passage": None, "question": "又多选", "options": ["(A)一", "(B)二"], "label": ["A", "B"]},
    ]  # fmt: skip
    (tmp_path / "gaokao-history.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    bench = {"keywords": "2010-2022_Biology_MCQs", "example": [
        {"year": "2010", "question": "1. 下列\nA．一\nB．二\nC．三\nD．四\n", "answer": ["C"]},
    ]}  # fmt: skip
    (tmp_path / "Biology_MCQs.json").write_text(json.dumps(bench), encoding="utf-8")

    found = read_choice_files((str(tmp_path),))

    assert found.num_several == 2
    biology, history = found.questions
    assert (biology.letters, biology.answer, biology.options) == ("ABCD", "C", ())
    assert prompt_text(history, []) == (
        "问题：材料\n问 选项：(A)一 (B)二\n答案：从A到B, 我们应选择"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,A,B,answer\nq,a,b,E\n", r"x\.csv:2: the answer is 'E', expected one of A, B"),
        ("question,A,B,answer\nq,a,b\n", r"x\.csv:2: 3 fields, expected 4"),
        ("question,answer\nq,A\n", r"x\.csv:2: has no options, expected columns A, B, C, D"),
        ("question,A,C,answer\nq,a,b,A\n", r"x\.csv:2: an option is missing"),
        ('question,A,B,answer\n"q,a,b,A\n', r"x\.csv:2: unexpected end of data"),
        (" ,A,B,answer,question\nx,a,b,A,\n", r"x\.csv:2: field 'question'"),
    ],
)
def test_what_is_no_question_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.csv")


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no \.csv"):
        read(tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        read(tmp_path / "none")
    (tmp_path / "x.json").write_text('{"example": 3}', encoding="utf-8")
    with pytest.raises(DataError, match="expected a list of objects under 'example'"):
        read(tmp_path)
    (tmp_path / "x.json").write_text('[{"question": "q", "choices": [1, 2], "answer": 0}]')
    with pytest.raises(DataError, match="the options are not all texts"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("（C）", "C"), ("答案：D", "D"), ("因为 A 不对，所以答案是 B。", "B"),
        ("The answer is (C).", "C"), ("正确选项应为【A】", "A"), ("A. 一", "A"), ("**B**", "B"),
        ("I think it is B", "B"), ("A 或 B", "A"), ("可能是 A，也可能是 B", None), ("不知道", None),
        ("E", None), ("Because", None), ("选项 B 正确", "B"), ("", None),
    ],
)  # fmt: skip
def test_the_letter_of_a_generated_answer_is_found(text: str, letter: str | None) -> None:
    assert letter_in(text, "ABCD") == letter
