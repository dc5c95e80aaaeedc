"""A user's own metric: what it may return, and where it went wrong."""

from pathlib import Path

import pytest

from glmtune.errors import DataError
from glmtune.use.evaluate.metrics import Answered
from glmtune.use.evaluate.own_metric import own_metric


def write(folder: Path, body: str) -> str:
    path = folder / "rules.py"
    path.write_text(body, encoding="utf-8")
    return f"{path}:score"


def test_a_function_of_a_file_scores_answers_with_any_kind_of_number(tmp_path: Path) -> None:
    text = "import numpy\ndef score(answer, reference):\n    return numpy.float32(len(answer))\n"
    metric = own_metric(write(tmp_path, text))

    assert metric.name == "rules:score"
    assert metric.of(Answered("四个字的", "", 1, True)) == 4.0
    assert metric.of(Answered("四个字的", None, 1, True)) is None
    nothing = own_metric(write(tmp_path, "def score(answer, reference): pass\n"))
    assert nothing.of(Answered("a", "b", 1, True)) is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def score(:\n", r"rules\.py:1: SyntaxError"),
        ("import no_such_module\n", r"rules\.py:1: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", r"rules\.py:1: SystemExit"),
        ("score = 3\n", r"has no function 'score'"),
        ("def other(): pass\n", r"has no function 'score'"),
        (
            "def score(a, b):\n    return a[9]\n",
            r"rules\.py:2: score\('x', 'y'\) raised IndexError",
        ),
        ("def score(a): return 1\n", r"rules\.py: score\('x', 'y'\) raised TypeError"),
        ("def score(a, b): return '1'\n", r"returned '1', expected a finite number"),
        ("def score(a, b): return float('nan')\n", r"returned nan, expected a finite number"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_line(
    tmp_path: Path, body: str, message: str
) -> None:
    name = write(tmp_path, body)
    with pytest.raises(DataError, match=message):
        own_metric(name).of(Answered("x", "y", 1, True))


def test_a_name_that_is_no_function_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected FILE\.py:FUNCTION"):
        own_metric("rules.py")
    with pytest.raises(DataError, match="there is no such file"):
        own_metric(f"{tmp_path}/none.py:score")
