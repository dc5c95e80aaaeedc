"""The evaluations in the folder of a run, as its report and its card show them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from glmtune.use.evaluate.names import SCORES_FILES
from glmtune.use.evaluate.results import Evaluation, Score, read_evaluation


def read_scores(folder: Path) -> list[Evaluation]:
    """Read the results that `glmtune evaluate` wrote into a folder.

    Raises:
        OutputError: a file is damaged.
    """
    return [read_evaluation(folder / name) for name in SCORES_FILES if (folder / name).is_file()]


def score_lines(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, str]]:
    """Yield what a card says of each metric: its name with the rows, and the values."""
    for evaluation in evaluations:
        data = evaluation.data_names
        for name, score in evaluation.scores.items():
            base = (evaluation.base or {}).get(name)
            before = "" if base is None else f", base {base.value:.2f}"
            found = evaluation.differences.get(name)
            verdict = f", {found.verdict}" if found is not None and found.verdict else ""
            yield f"{name} ({score.num_rows:,} rows of {data})", f"{shown(score)}{before}{verdict}"


def shown(score: Score) -> str:
    """Return a value with its interval."""
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"
