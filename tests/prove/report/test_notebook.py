"""What a notebook shows of a run, as HTML that needs nothing else."""

import math
from pathlib import Path

from glmtune.prove.report.facts import ReportFacts
from glmtune.prove.report.notebook import progress_html, run_html
from glmtune.prove.report.page import write_report
from glmtune.prove.report.record import read_record


def test_a_running_training_shows_its_steps_its_curve_and_the_time_left() -> None:
    losses = {step: 4 / step for step in range(1, 1001)} | {500: math.nan}

    html = progress_html(losses, 2000, step=1000, rate=123.4, left=3600)

    assert '<progress value="1000" max="2000"' in html
    assert "step 1,000 of 2,000, loss 0.004, 123.4 tokens/s, 1 h 0 min left" in html
    assert html.count("<path") < 20
    assert len(html) < 20_000  # whatever the number of steps


def test_the_first_step_has_no_curve_and_no_estimate_yet() -> None:
    html = progress_html({1: 2.5}, 9, step=1, rate=10, left=None)

    assert "step 1 of 9, loss 2.5, 10 tokens/s<" in html
    assert "<svg" not in html


def test_a_finished_run_shows_failed_proofs_and_only_escaped_text(
    run_dir: Path, facts: ReportFacts
) -> None:
    write_report(run_dir, facts)

    html = run_html(read_record(run_dir))

    assert "1 of 9 proofs passed, 7 not run; failed: reloaded from disk it is the same" in html
    assert "<script" not in html
    assert "http" not in html
