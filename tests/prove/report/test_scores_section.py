"""The scores of `glmtune evaluate` in the report and in the card of a run."""

from pathlib import Path

import pytest

from glmtune.errors import OutputError
from glmtune.prove.card import render_card
from glmtune.prove.folder_card import facts_of
from glmtune.prove.report.page import rewrite_report
from glmtune.train.output import clear_run
from glmtune.use.evaluate.results import Evaluation, Score
from glmtune.use.evaluate.statistics import Difference

EVIL = "<script>document.title='owned'</script>"


def evaluation(**changes: object) -> Evaluation:
    score = Score(value=96.08, low=90.35, high=98.46, num_rows=102)
    values = {
        "task": "answers", "model": "nano", "adapter": "out", "data": (f"/home/me/{EVIL}",),
        "num_rows": 102, "scores": {"exact": score}, "settings": {"temperature": 0.0},
        "base": {"exact": Score(value=1.5, low=0.4, high=6.9, num_rows=102)},
        "differences": {"exact": Difference(94.58, 90, 98, 1e-9, "mcnemar", "better")},
        "notes": ("3 rows have no answer",),
    }  # fmt: skip
    return Evaluation.model_validate({**values, **changes})


def test_a_report_shows_the_scores_with_their_intervals_and_verdicts(run_dir: Path) -> None:
    assert "Not evaluated. <code>glmtune evaluate" in rewrite_report(run_dir).read_text("utf-8")
    evaluation().write(run_dir / "scores.json")
    evaluation(task="choice", base=None, differences={}).write(run_dir / "scores-choice.json")

    page = rewrite_report(run_dir).read_text(encoding="utf-8")

    for text in ("96.08", "90.35 to 98.46", "1.50", "+94.58", "better", "102 rows, choice",
                 "3 rows have no answer"):  # fmt: skip
        assert text in page
    assert EVIL not in page
    assert "/home/me" not in page


def test_a_card_shows_them_and_a_new_run_removes_them(run_dir: Path) -> None:
    evaluation(data=("held_out.json",)).write(run_dir / "scores.json")

    card = render_card(facts_of(run_dir))

    line = "| exact (102 rows of held_out.json) | 96.08 (90.35 to 98.46), base 1.50, better |"
    assert card.count(line) == 2  # in English and in Chinese
    clear_run(run_dir)
    assert not (run_dir / "scores.json").exists()


def test_a_damaged_result_is_named_with_what_to_do(run_dir: Path) -> None:
    (run_dir / "scores.json").write_text('{"kind": "glmtune evaluation", "task": "x"}')

    with pytest.raises(OutputError, match=r"scores\.json: .*Run `glmtune evaluate` again"):
        rewrite_report(run_dir)
