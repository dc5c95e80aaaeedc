"""A survey counts as the trainer counts, and finds the rows worth looking at."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.rows import RowError
from glmtune.inspect.survey import Survey, survey_rows
from glmtune.model.load import load_tokenizer
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.template.select import template_for

LONG = {"instruction": "1 2 3 " * 30, "input": "", "output": "春天来了。"}
ROWS: list[dict[str, Any]] = [
    {"instruction": "北京的历史", "input": "", "output": "三千多年。"},
    {"instruction": "读", "input": "", "output": "魑魅魍魉😀🦀"},
    LONG,
    {"instruction": "没有回答", "input": "", "output": ""},  # bad
    {"instruction": "诗", "input": "", "output": "12 " * 99},
    {"instruction": "你好", "input": "", "output": "你好。鑫"},
]


def recipe_for(model: Path, rows: Path, **data: Any) -> Recipe:
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(rows), "max_length": 60, "bad_rows": "skip", **data},
        "output": {"dir": "out"},
    }
    return build_recipe(tree)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), "utf-8")
    return path


def numbers(survey: Survey, name: str) -> list[int]:
    return [row.number for row in survey.worst[name]]


@pytest.mark.parametrize("overlong", ["drop", "truncate_prompt", "tutorial"])
def test_totals_are_those_of_the_trainer(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, overlong: Any
) -> None:
    recipe = recipe_for(tiny_model_dir, rows, overlong=overlong)
    template = template_for(load_tokenizer(str(tiny_model_dir)))
    options = EncodeOptions(max_length=60, overlong=overlong, bad_rows="skip")
    trained = encode_data(str(rows), template, options, cache_dir=tmp_path / "cache")

    survey = survey_rows(recipe, first=1, count=99)

    expected = trained.report
    assert survey.report.num_bad_rows == 1
    fates = (expected.num_overlong, expected.num_shortened, expected.num_cut)
    assert sum(fates) + expected.num_without_labels == 2
    for name in expected.__dataclass_fields__:
        if name != "quarantine":
            assert getattr(survey.report, name) == getattr(expected, name), name
    assert sum(row.num_tokens for row in survey.chosen) == expected.num_tokens
    assert sum(row.num_learned for row in survey.chosen) == expected.num_learned_tokens


def test_the_worst_rows_are_found_with_the_worst_first(tiny_model_dir: Path, rows: Path) -> None:
    survey = survey_rows(recipe_for(tiny_model_dir, rows, overlong="truncate_prompt"))

    lengths = [row.num_tokens + row.num_cut for row in survey.worst["Longest"]]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == 5
    assert sorted(numbers(survey, "Too long: cut, shortened or left out")) == [3, 5]
    fates = {row.number: row.fate for row in survey.worst["Longest"]}
    assert re.fullmatch(r"prompt shortened: \d+ tokens are more than data.max_length 60", fates[3])
    assert re.fullmatch(r"left out: \d+ tokens are more than data.max_length 60", fates[5])
    assert numbers(survey, "Most byte tokens")[0] == 2
    assert survey.worst["Nothing learned"] == ()
    assert [bad.line for bad in survey.bad_rows] == [4]


def test_a_row_cut_before_its_answer_is_shown_as_one_that_teaches_nothing(
    tiny_model_dir: Path, rows: Path
) -> None:
    survey = survey_rows(recipe_for(tiny_model_dir, rows, overlong="tutorial"))

    [row] = survey.worst["Nothing learned"]
    assert row.number == 3
    assert row.num_learned == 0
    assert re.fullmatch(r"left out: none of its first 60 of \d+ tokens is learned", row.fate)


def test_rows_keep_the_numbers_that_inspect_gives_them(tiny_model_dir: Path, rows: Path) -> None:
    survey = survey_rows(recipe_for(tiny_model_dir, rows), first=3, count=3)

    assert [(row.number, row.place) for row in survey.chosen] == [
        (3, f"{rows}:3"),
        (5, f"{rows}:5"),  # 4 could not be used
    ]


def test_a_bad_row_stops_the_survey_where_it_would_stop_training(
    tiny_model_dir: Path, rows: Path
) -> None:
    with pytest.raises(RowError, match=r"rows\.jsonl:4: field 'output': the answer is empty"):
        survey_rows(recipe_for(tiny_model_dir, rows, bad_rows="fail"))
