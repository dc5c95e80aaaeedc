"""A proof of a run: its name, its verdict and what was measured.

A proof that was not run is "not run", never "passed".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from glmtune.errors import TemplateError, TrainingError

PACKED = "training scores a row as answering does"
ALIVE = "all that is trained has learned"
SAVED = "reloaded from disk it is the same"
STREAMED = "streamed from disk it answers the same"
MERGED = "merged into the base it answers the same"
TEMPLATE = "chat asks as training did"
STOCK_READER = "stock transformers asks the same"
STOPS = "answers end by themselves"
FORGETS = "what the base knew is still there"
# In this order; a report shows those that are missing as "not run".
PROOFS = (PACKED, ALIVE, SAVED, STREAMED, MERGED, TEMPLATE, STOCK_READER, STOPS, FORGETS)


@dataclass(frozen=True, slots=True)
class Proof:
    """One check of a run, and its result.

    Attributes:
        name: the statement to prove, such as one of `PROOFS`.
        verdict: "not run" for a check that had nothing to check.
        detail: what was measured and, if it failed, what to do.
    """

    name: str
    verdict: Literal["passed", "failed", "not run"]
    detail: str = ""


def prove(name: str, check: Callable[[], Any]) -> Proof:
    """Run a check; what it returns, or the error that it raises, is the detail."""
    try:
        shown = check()
    except (TrainingError, TemplateError) as error:
        return Proof(name, "failed", str(error))
    return shown if isinstance(shown, Proof) else Proof(name, "passed", str(shown or ""))
