"""All rows at hand decide what a file has, not the first one alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.formats.rows import row, user_and_assistant

from glmtune.conversation import Message
from glmtune.data.dataset import HEAD_ROWS, Dataset, Entry
from glmtune.data.formats import convert, detect, split_answer
from glmtune.data.rows import BadRow
from glmtune.errors import DataError
from glmtune.recipe.sections import DataSection


def section(path: Path, rows: list[dict[str, Any]], **values: Any) -> DataSection:
    path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in rows))
    return DataSection.model_validate({"train": str(path), **values})


def test_a_column_that_the_first_row_lacks_is_read_where_it_is(tmp_path: Path) -> None:
    rows = [{"问": "一", "答": "二"}, {"问": "三", "答": "四", "系统": "你是店员"}]
    columns = {"query": "问", "response": "答", "system": "系统"}

    entries = list(Dataset.of(section(tmp_path / "r.jsonl", rows, columns=columns)).read(convert))

    assert [entry.value.messages for entry in entries if isinstance(entry, Entry)] == [
        user_and_assistant("一", "二"),
        (Message("system", "你是店员"), *user_and_assistant("三", "四")),
    ]


def test_a_mapped_column_that_no_row_at_hand_has_is_refused(tmp_path: Path) -> None:
    rows = [{"query": "q", "response": "a"}] * HEAD_ROWS
    columns = {"system": "系统"}
    wanted = section(tmp_path / "r.jsonl", [*rows, {**rows[0], "系统": "s"}], columns=columns)

    with pytest.raises(DataError, match="'system' from column '系统', but the columns are 'query'"):
        list(Dataset.of(wanted).read(convert))
    later = section(tmp_path / "r.jsonl", [*rows[1:], {**rows[0], "系统": "s"}], columns=columns)
    assert len(list(Dataset.of(later).read(convert))) == HEAD_ROWS


def test_an_answer_that_the_first_row_lacks_is_missing_there_alone(tmp_path: Path) -> None:
    rows = [{"query": "一"}, {"query": "二", "response": "2"}]

    first, second = Dataset.of(section(tmp_path / "r.jsonl", rows)).read(convert)

    assert isinstance(first, BadRow)
    assert first.field == "response"
    assert isinstance(second, Entry)
    questions = Dataset.of(section(tmp_path / "r.jsonl", rows), needs_answer=False)
    answers = [entry.value[1] for entry in questions.read(split_answer) if isinstance(entry, Entry)]
    assert answers == [(), (Message("assistant", "2"),)]


def test_questions_may_lack_the_column_that_a_recipe_maps_the_answer_from(tmp_path: Path) -> None:
    columns = {"query": "问", "response": "答"}
    wanted = section(tmp_path / "r.jsonl", [{"问": "一"}], columns=columns)

    [entry] = Dataset.of(wanted, needs_answer=False).read(split_answer)

    assert isinstance(entry, Entry)
    assert entry.value[0].messages == (Message("user", "一"),)


def test_the_first_row_that_fits_decides_among_formats() -> None:
    unknown, alpaca = row(x=1), row(instruction="a", output="b")

    assert detect([unknown, alpaca, row(query="a", response="b")]).name == "alpaca"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"Instruction": "q", "output ": "a"}, 'instruction: Instruction, output: "output "'),
        ({"role": "user", "content": "q"}, '{"messages": [...]}'),
        ({"from": "human", "value": "q"}, '{"messages": [...]}'),
        ({"0": {"query": "q"}, "1": {"query": "r"}}, "orient='records'"),
    ],
)
def test_columns_of_no_format_are_explained(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(DataError) as caught:
        detect([row(**fields)])

    assert hint in str(caught.value)


def test_the_columns_that_differ_in_spelling_alone_are_read_as_the_hint_says() -> None:
    columns = {"instruction": "Instruction", "output": "output "}

    assert detect([row(**{"Instruction": "q", "output ": "a"})], None, columns).name == "alpaca"


def test_a_file_of_two_kinds_of_messages_is_not_told_to_read_all_as_the_second() -> None:
    sharegpt = detect([row(conversations=[{"from": "human", "value": "q"}])])

    with pytest.raises(DataError, match=r"if all rows of the file .* into a file of their own"):
        convert(row(conversations=[{"role": "user", "content": "q"}]), sharegpt, {}, {})
