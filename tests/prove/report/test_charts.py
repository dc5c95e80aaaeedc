"""Charts show what was measured, gaps and peaks included."""

import json
from typing import Any

import pytest

from glmtune.prove.report.charts import Tick, make_charts, text_curve, thin


def lines(losses: list[float | None]) -> list[dict[str, Any]]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]


def test_a_curve_goes_through_its_points_between_round_numbers() -> None:
    [chart] = make_charts(lines([4.0, 2.0, 1.0]))

    assert chart.title == "Loss"
    assert [tick.text for tick in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [curve.line for curve in chart.curves] == ["M0.0 0.0L500.0 500.0L1000.0 750.0"]
    assert [(tick.at, tick.text) for tick in chart.x_ticks] == [(0, "1"), (50, "2"), (100, "3")]
    assert chart.summary == (
        "Loss in nats per learned token: training from 4 at step 1 to 1 at step 3."
    )


def test_the_loss_of_preferences_is_per_pair() -> None:
    chart, _ = make_charts([line | {"reward_margin": 0.1} for line in lines([0.7, 0.2])])

    assert chart.unit == "nats per pair of answers"
    assert "nats per pair of answers" in chart.summary


def test_a_value_that_is_not_finite_is_a_gap_with_a_label() -> None:
    [chart] = make_charts(lines([4.0, 3.0, None, 1.0]))

    assert chart.curves[0].line.count("M") == 2
    assert json.loads(chart.data)["values"] == [["4", "3", "not finite", "1"]]


def test_held_out_and_training_loss_share_their_axes() -> None:
    values = [*lines([4.0, 2.0]), {"step": 2, "eval_loss": 8.0}]

    [chart] = make_charts(values)

    assert [curve.name for curve in chart.curves] == ["training", "held out"]
    assert float(chart.y_ticks[-1].text) == 8
    assert json.loads(chart.data)["values"] == [["4", "2"], [None, "8"]]


def test_a_constant_is_drawn_in_the_middle_rather_than_divided_by_zero() -> None:
    [chart] = make_charts([{"step": 1, "learning_rate": 1e-4}, {"step": 9, "learning_rate": 1e-4}])

    lowest, highest = float(chart.y_ticks[0].text), float(chart.y_ticks[-1].text)
    assert lowest <= 1e-4 < highest


@pytest.mark.parametrize("measured", [[], lines([1.0]), lines([None, None])])
def test_what_cannot_be_drawn_is_left_out(measured: list[dict[str, Any]]) -> None:
    assert make_charts(measured) == []


def test_thinning_keeps_the_peaks_the_evaluations_and_both_ends() -> None:
    many = lines([1.0] * 1000)
    many[333]["loss"] = 9.0
    many[555]["loss"] = None  # not finite
    many.insert(777, {"step": 777, "eval_loss": 2.0})

    kept = thin(many, limit=50)

    assert len(kept) < 60
    assert many[333] in kept
    assert many[555] in kept
    assert many[777] in kept
    assert (kept[0], kept[-1]) == (many[0], many[-1])


def test_a_curve_for_a_terminal_is_logarithmic_between_its_labeled_ends() -> None:
    rows = list(text_curve([8.0, 4.0, 2.0, 1.0]))

    assert [row[:10] for row in (rows[0], rows[-1])] == ["   8.000 |", "   1.000 |"]
    assert all(row.startswith("         |") for row in rows[1:-1])
    heights = [sum(" ▁▂▃▄▅▆▇█".index(row[10 + column]) for row in rows) for column in range(4)]
    assert heights == [64, 43, 22, 1]  # eighths; equal ratios are equal distances


def test_a_curve_for_a_terminal_can_show_one_value_and_zero() -> None:
    assert [row[10:] for row in text_curve([2.0])] == [" "] * 7 + ["▁"]
    assert next(iter(text_curve([1.0, 0.0]))).endswith("█ ")


def test_a_loss_over_a_wide_range_has_a_logarithmic_axis() -> None:
    [wide] = make_charts(lines([8.0, 0.8, 0.08]))
    [narrow] = make_charts(lines([8.0, 4.0, 0.8]))

    assert (wide.unit, narrow.unit) == (
        "nats per learned token, logarithmic", "nats per learned token",
    )  # fmt: skip
    assert [tick.text for tick in wide.y_ticks] == ["0.01", "0.1", "1", "10"]
    ys = [float(part.split()[1]) for part in wide.curves[0].line[1:].split("L")]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)  # equal ratios, equal distances


def test_numbers_of_any_size_can_be_drawn() -> None:
    for low, high in ((5e-324, 1.0), (1e-280, 1e100), (1e-9, 1e9)):
        [chart] = make_charts(lines([low, high]))
        assert 2 <= len(chart.y_ticks) <= 12


def test_the_step_that_was_saved_is_marked_unless_it_is_the_last() -> None:
    measured = lines([3.0, 2.0, 2.5, 2.6, 2.7])

    [best] = make_charts(measured, saved_step=2)
    [last] = make_charts(measured, saved_step=5)

    assert best.mark == Tick(25, "saved: step 2")
    assert last.mark is None
