"""Rows in memory become a file of the cache, which is named by its content."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from glmtune.data.memory_rows import as_sources, write_rows
from glmtune.data.sources import read_rows
from glmtune.errors import DataError
from glmtune.recipe.sources import SourceSection

ROWS: list[dict[str, Any]] = [
    {"instruction": "你好", "output": "你好！"},
    {"instruction": "再见", "output": "再见。"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


def test_a_list_a_data_set_and_a_frame_of_the_same_rows_are_one_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    paths = {
        write_rows(ROWS),
        write_rows(pd.DataFrame(ROWS)),
        write_rows(datasets.Dataset.from_list(ROWS)),
    }

    [path] = paths
    assert path.parent == tmp_path / "cache" / "rows"
    assert [dict(row) for row in read_rows(path)] == ROWS
    assert [path.name for path in path.parent.iterdir()] == [path.name]  # nothing is left over
    assert write_rows([*ROWS, ROWS[0]]) != path


def test_an_equal_file_is_not_touched_and_a_damaged_one_is_written_again() -> None:
    path = write_rows(ROWS)
    before = path.stat()

    write_rows(ROWS)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-5], encoding="utf-8")
    assert write_rows(ROWS).read_text(encoding="utf-8") == text


def test_values_of_libraries_become_plain_ones() -> None:
    row = {
        "number": np.int64(3), "vector": np.arange(2), "day": datetime.date(2026, 11, 27),
        "nothing": float("nan"), "nested": [{"role": "user", "content": ("a", None)}],
    }  # fmt: skip

    [line] = write_rows([row]).read_text(encoding="utf-8").splitlines()

    assert json.loads(line) == {
        "number": 3, "vector": [0, 1], "day": "2026-11-27", "nothing": None,
        "nested": [{"role": "user", "content": ["a", None]}],
    }  # fmt: skip


def test_a_missing_value_of_a_frame_is_a_field_that_the_row_lacks() -> None:
    frame = pd.DataFrame([{**ROWS[0], "input": "x"}, {**ROWS[1], "when": pd.Timestamp("2026-01")}])

    assert [sorted(row) for row in read_rows(write_rows(frame))] == [
        ["input", "instruction", "output"], ["instruction", "output", "when"],
    ]  # fmt: skip


def test_paths_and_sources_with_keys_stay_as_they_are_also_beside_rows() -> None:
    source = {"path": "b.json", "weight": 2}

    assert as_sources("rows.json") == ["rows.json"]
    assert as_sources(Path("rows.json")) == ["rows.json"]
    assert as_sources([source, SourceSection(path="c.json")]) == [source, {"path": "c.json"}]
    assert as_sources(["a.json", ROWS]) == ["a.json", str(write_rows(ROWS))]


def test_half_a_character_reaches_the_reader_that_names_the_row() -> None:
    path = write_rows([{"instruction": "a\ud83d", "output": "b"}])

    assert next(iter(read_rows(path)))["instruction"] == "a\ud83d"


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows: there are no rows in it"),
        ([ROWS[0], 3], r"rows\[1\]: got a value of type int, expected a dict"),
        ([{"a": object()}], r"rows\[0\]\['a'\]: got a value of type object"),
        ([{"a": {3: 1}}], r"rows\[0\]\['a'\]: has the field 3 of type int"),
        ([{"a": float("inf")}], r"rows\[0\]\['a'\]: is infinite"),
        ([{"a": nested(200)}], "nested more than 100 levels"),
        ({"instruction": ["a"], "output": ["b"]}, r"becomes rows by pandas\.DataFrame\(rows\)"),
        (iter(ROWS), r"Collect its rows first: list\(rows\)"),
        ([[{"role": "user", "content": "a"}]], '"messages": '),
        (3, "got a value of type int, expected a path, a list of dicts"),
        (
            pd.DataFrame([[1, 2]], columns=["a", "a"]),
            "rows: has a column twice: a",
        ),
    ],
)
def test_what_are_no_rows_is_refused_by_its_place(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_sources(rows)


def test_of_a_data_set_with_splits_one_is_to_be_chosen() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    splits = datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS))

    with pytest.raises(DataError, match=r"DatasetDict.* Choose a split, such as rows\['test'\]"):
        as_sources(splits)
