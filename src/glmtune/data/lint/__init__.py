"""What is wrong with a data set, before any training.

    findings.py    the checks by id, their thresholds, and what one of them finds
    texts.py       one row's words: markers, broken characters, placeholders, refusals, ...
    tokens.py      one row's ids: does it end in a stop, was it cut, and what a limit costs
    twins.py       rows beside each other: duplicates, contradictions, leaks
    report.py      all that was found, for people and machines
    run.py         reads the rows once and asks all of these

`lint_data` only reads. `write_clean_copy` writes the rows that are worth keeping to a new file
and changes none of them.
"""

from glmtune.data.lint.findings import (
    CHECKS,
    Check,
    Finding,
    Severity,
)
from glmtune.data.lint.report import LintReport
from glmtune.data.lint.run import lint_data, write_clean_copy
from glmtune.data.lint.tokens import Lengths

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Lengths",
    "LintReport",
    "Severity",
    "lint_data",
    "write_clean_copy",
]
