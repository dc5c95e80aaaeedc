"""What a notebook shows of a run: while it trains, and when it has ended.

The HTML has no script, no style sheet and nothing that is loaded, so it is shown as it is by
JupyterLab, Colab and ModelScope, and stays in a notebook that is opened without a network.
"""

import math
from collections.abc import Mapping

from glmtune.prove.report.charts import draw, loss_chart
from glmtune.prove.report.record import RunRecord
from glmtune.prove.report.render import render
from glmtune.prove.report.summary import (
    count_verdicts,
    key_figures,
    loss_line,
    prompt_text,
    title_of,
    verdict_line,
)

MOST_POINTS = 300  # of the curve while a run trains; all are in its report


def run_html(record: RunRecord) -> str:
    """Render a run as a cell of a notebook: verdict, curve and answers."""
    facts = record.facts
    return render(
        "run_cell.html",
        title=title_of(record),
        facts=facts,
        prompt_text=prompt_text,
        folder=record.folder,
        losses=loss_line(key_figures(record.lines, facts.saved_step), facts.saved_step),
        verdict=verdict_line(facts.all_proofs),
        verdicts=count_verdicts(facts.all_proofs),
        chart=loss_chart(record.lines, facts.saved_step),
    )


def progress_html(
    losses: Mapping[int, float], num_steps: int, *, step: int, rate: float, left: float | None
) -> str:
    """Render a run that is training as a cell of a notebook.

    Args:
        losses: of the steps so far.
        num_steps: of the whole run.
        step: steps done.
        rate: tokens per second.
        left: seconds to the end; None if not known yet.
    """
    every = max(1, math.ceil(len(losses) / MOST_POINTS))
    shown = {
        step: loss if math.isfinite(loss) else None
        for index, (step, loss) in enumerate(losses.items())
        if index % every == 0 or index == len(losses) - 1
    }
    last = next(reversed(shown.values()), None)
    return render(
        "progress_cell.html",
        step=step,
        num_steps=num_steps,
        loss=last,
        rate=rate,
        left=left,
        chart=draw("Loss", "", {"training": shown}, may_be_log=True),
    )
