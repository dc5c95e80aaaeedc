"""The clean copy of a data file: without the faulty rows, every other row unchanged."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.data.lint.planted import (
    AT,
    CLEAN,
    CLEAN_PAIRS,
    NUM_CLEAN,
    alpaca,
    chat,
    clean_rows,
    only,
    pair,
    section,
    write,
)

from glmtune.data.lint.clean_copy import write_clean_copy
from glmtune.data.lint.run import lint_data
from glmtune.errors import DataError, OutputError
from glmtune.recipe.choices import Layout
from glmtune.recipe.sections import DataSection
from glmtune.recipe.sources import SourceSection
from glmtune.template.base import Template


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


def test_general_rows_are_checked_but_are_not_in_the_clean_copy(
    tmp_path: Path, template_of: Callable[[Layout], Template]
) -> None:
    path = write(tmp_path / "rows.jsonl", clean_rows())
    faulty = [chat(("user", "什么是雪？"), ("assistant", "雪是锟斤拷。"))]
    general = write(
        tmp_path / "general.jsonl", [chat(("user", "一"), ("assistant", "二")), *faulty]
    )
    replay = {"path": general, "ratio": 0.5}
    data = section(path, replay=replay, eval_fraction=0.9, columns={"input": "input"})

    report = lint_data(data, template_of("official"))

    assert (only(report).check, only(report).file, only(report).line) == ("encoding", general, 2)
    assert report.num_rows == NUM_CLEAN + 2
    assert write_clean_copy(data, report, tmp_path / "clean.jsonl") == (NUM_CLEAN, 0)


def test_a_clean_copy_of_two_formats_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", clean_rows())
    second = write(tmp_path / "b.jsonl", [chat(("user", "一加一等于几"), ("assistant", "二"))])
    data = DataSection(train=(first, second))

    with pytest.raises(DataError, match="alpaca, openai"):
        write_clean_copy(data, lint_data(data), tmp_path / "clean.jsonl")


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


def test_a_copy_that_cannot_be_written_is_refused_before_and_while_it_is_written(
    plant: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSection(train=(plant(),))
    report = lint_data(data)
    for target in ("/proc/self/clean.jsonl", str(tmp_path / ("a" * 300)) + ".jsonl"):
        with pytest.raises(OutputError, match=r"cannot be written|could not be written"):
            write_clean_copy(data, report, Path(target))
    with pytest.raises(OutputError, match="there is no folder"):
        write_clean_copy(data, report, tmp_path / ("a" * 300) / "clean.jsonl")

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(Path, "rename", read_only)
    with pytest.raises(OutputError, match="Read-only file system"):
        write_clean_copy(data, report, tmp_path / "clean.jsonl")


def test_sources_with_columns_of_their_own_are_not_copied_into_one_file(
    plant: Callable[..., str],
) -> None:
    path = plant()
    own = SourceSection(path=path, columns={"instruction": "instruction"})
    data = DataSection(train=(path, own))

    with pytest.raises(DataError, match="columns or roles of their own"):
        write_clean_copy(data, lint_data(data), Path("clean.jsonl"))
