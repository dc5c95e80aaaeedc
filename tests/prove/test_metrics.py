"""The metrics of a run are read line by line, whatever happened to the file."""

import json
import logging
from pathlib import Path

import pytest

from glmtune.prove.metrics import MetricsFile, cut_metrics, read_metrics

GOOD = b'{"step": 1, "loss": 2.5}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"7",
        b"null",
        b"{}",
        b'{"loss": 1.0}',
        b'{"step": "2", "loss": 1.0}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": 2.5}',
        b'{"step": 1' + b"0" * 400 + b"}",
        b'{"step": 2, "loss": "low"}',
        b'{"step": 2, "loss": [1]}',
        b'{"step": 2, "loss": 1e200}',
        b'{"step": 2, "loss": 1' + b"0" * 400 + b"}",
        b'{"step": 2, "loss": true}',
        b'{"a":' * 5000,
        b'{"step": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_line_that_is_not_of_numbers_is_left_out_and_named(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD.replace(b"1", b"3"))

    with caplog.at_level(logging.WARNING):
        lines = read_metrics(path)

    assert lines == [{"step": 1, "loss": 2.5}, {"step": 3, "loss": 2.5}]
    assert "metrics.jsonl:2: this is not a line of metrics; it is left out" in caplog.text


def test_a_last_line_that_an_interrupt_left_incomplete_is_left_out_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b'{"step": 2, "lo')

    with caplog.at_level(logging.WARNING):
        assert read_metrics(path) == [{"step": 1, "loss": 2.5}]
    assert caplog.text == ""


def test_what_is_written_is_read_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1, "loss": float("nan"), "grad_norm": 3e38})
    with file.path.open("a") as raw:
        raw.write('{"step": 2, "loss": Infinity}\n')

    assert read_metrics(file.path) == [
        {"step": 1, "loss": None, "grad_norm": 3e38},
        {"step": 2, "loss": None},
    ]


def test_resuming_keeps_the_good_lines_up_to_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b"\xff\n" + GOOD.replace(b"1", b"4"))

    cut_metrics(path, 3)

    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 2.5}
    ]
