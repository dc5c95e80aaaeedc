"""What a layout and a length limit do to a row is reported."""

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from tests.data.lint.planted import (
    AT,
    CLEAN,
    LONG_ANSWER,
    alpaca,
    chat,
    found,
    only,
    pair,
    section,
    write,
)

from glmtune.data.lint.run import lint_data
from glmtune.data.lint.tokens import LengthCost, Lengths
from glmtune.recipe.choices import Layout
from glmtune.template.base import Template

NUMBERS = "一二三四五六七八九十"
LONG = alpaca("数数", "".join(map("".join, permutations(NUMBERS, 3)))[:300])


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
def test_what_happens_to_a_long_row_is_reported(
    plant: Callable[..., str],
    template_of: Callable[[Layout], Template],
    overlong: str,
    row: Mapping[str, Any],
    expected: list[tuple[str, str]],
) -> None:
    data = section(plant(row), max_length=200, overlong=overlong)

    report = lint_data(data, template_of("official"))

    assert found(report) == [(check, AT, severity) for check, severity in expected]


def test_an_answer_that_continues_into_text_that_is_not_learned_never_stops(
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


def test_the_cost_of_a_length_limit_is_computed() -> None:
    lengths = Lengths([*range(1, 100), 300], "tokens", limit=200)

    assert lengths.percentiles() == {50: 50, 90: 90, 95: 95, 99: 99, 100: 300}
    assert lengths.costs() == [
        LengthCost(64, num_overlong=36, lost_if_dropped=sum(range(65, 100)) + 300, lost_if_cut=866),
        LengthCost(128, num_overlong=1, lost_if_dropped=300, lost_if_cut=172),
        LengthCost(200, num_overlong=1, lost_if_dropped=300, lost_if_cut=100),
        LengthCost(256, num_overlong=1, lost_if_dropped=300, lost_if_cut=44),
        LengthCost(512, num_overlong=0, lost_if_dropped=0, lost_if_cut=0),
    ]


def test_a_rejected_answer_that_does_not_stop_is_found(
    plant_pair: Callable[..., str], template_of: Callable[[str], Template]
) -> None:
    path = plant_pair(pair("为什么？", "因为。", LONG_ANSWER))
    data = section(path, max_length=200, overlong="tutorial", layout="tutorial")

    report = lint_data(data, template_of("tutorial"), pairs=True)

    messages = {finding.check: finding.message for finding in report.findings}
    assert messages.keys() == {"cut-answer", "no-stop"}
    assert all(message.startswith("the rejected answer: ") for message in messages.values())
    assert {finding.line for finding in report.findings} == {AT}


def test_the_histogram_of_lengths_has_round_intervals_and_every_row() -> None:
    few = Lengths([7, 7, 8, 26], "tokens", limit=None)
    assert few.histogram() == [(n, {7: 2, 8: 1, 26: 1}.get(n, 0)) for n in range(7, 27)]
    many = Lengths([*range(1, 100), 300], "tokens", limit=200).histogram()
    assert many[:3] == [(19, 19), (39, 20), (59, 20)]
    assert many[-1] == (319, 1)
    assert sum(count for _, count in many) == 100
    assert Lengths([5], "tokens", limit=None).histogram() == [(5, 1)]
    assert Lengths([0, 2**40], "tokens", limit=None).histogram()[0] == (99_999_999_999, 1)
    assert Lengths([], "tokens", limit=None).histogram() == []
