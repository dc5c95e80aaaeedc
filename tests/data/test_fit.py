"""Rows longer than `max_length`: left out, shortened or cut, and counted."""

from __future__ import annotations

import time
from pathlib import Path

from tests.data.encoding import ALPACA, CountingTemplate, expected, write

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.template.base import IGNORE, Example

OVERLONG = [ALPACA[2], {"instruction": "北京的历史" * 20, "output": "3 度。"}, ALPACA[2]]


def test_long_rows_are_dropped_and_counted(tmp_path: Path, template: CountingTemplate) -> None:
    path = write(tmp_path / "rows.json", OVERLONG)
    short, long, _ = expected(OVERLONG, template, "alpaca")

    data = encode_data(path, template, EncodeOptions(max_length=len(short.input_ids)))

    assert list(data) == [short, short]
    assert data.report.num_overlong == 1
    assert data.report.longest == len(long.input_ids) > len(short.input_ids)
    assert f"1 row left out: longer than {len(short.input_ids)} tokens" in str(data.report)


def test_the_prompt_of_a_long_row_is_shortened_and_its_answer_and_end_are_kept(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", OVERLONG)
    short, long, _ = expected(OVERLONG, template, "alpaca")
    options = EncodeOptions(max_length=30, overlong="truncate_prompt")
    assert len(short.input_ids) <= 30 < len(long.input_ids)

    data = encode_data(path, template, options)

    learned = [label for label in long.labels if label != IGNORE]
    assert [label for label in data[1].labels if label != IGNORE] == learned
    assert len(data[1].input_ids) <= 30
    assert (data.report.num_shortened, data.report.num_overlong) == (1, 0)


def test_an_answer_that_does_not_fit_is_left_out_even_with_a_shortened_prompt(
    tmp_path: Path, template: CountingTemplate
) -> None:
    rows = [ALPACA[2], {"instruction": "一", "output": "北京的历史" * 20}]
    options = EncodeOptions(max_length=30, overlong="truncate_prompt")

    data = encode_data(write(tmp_path / "rows.json", rows), template, options)

    assert (len(data), data.report.num_overlong, data.report.num_shortened) == (1, 1, 0)


def test_the_tutorial_cuts_and_a_row_without_any_label_left_is_dropped(
    tmp_path: Path, template: CountingTemplate
) -> None:
    rows = [*OVERLONG, {"instruction": "一", "output": "北京的历史" * 20}]
    short, prompt_too_long, _, cut = expected(rows, template, "alpaca")
    assert set(prompt_too_long.labels[:30]) == {IGNORE}

    options = EncodeOptions(max_length=30, overlong="tutorial")
    data = encode_data(write(tmp_path / "rows.json", rows), template, options)

    assert list(data) == [short, short, Example(cut.input_ids[:30], cut.labels[:30])]
    assert (data.report.num_cut, data.report.num_without_labels) == (1, 1)


def test_a_row_of_one_megabyte_costs_no_more_than_its_row(
    tmp_path: Path, template: CountingTemplate
) -> None:
    rows = [ALPACA[0], {"instruction": "长", "output": "春天来了，" * 70_000}, ALPACA[1]]
    path = write(tmp_path / "rows.json", rows)
    assert path.stat().st_size > 1 << 20

    start = time.monotonic()
    data = encode_data(path, template, EncodeOptions(max_length=1000))

    assert len(data) == 2
    assert data.report.longest > 300_000
    assert time.monotonic() - start < 20
