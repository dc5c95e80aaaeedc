"""All findings of a data set, as an object and as JSON."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from glmtune.data.lint.findings import CHECKS, SEVERITIES, Finding, Severity
from glmtune.data.lint.tokens import Lengths
from glmtune.data.rows import ESCAPED


@dataclass(frozen=True, slots=True)
class LintReport:
    """All findings of a data set.

    Attributes:
        findings: by check, then in the order of the rows; all of them.
        num_rows: rows of data.train and data.replay, unreadable ones included.
        num_eval_rows: rows of data.eval.
        formats: the format of each file.
        other_files: those of data.eval and data.replay.
        lengths: of the training rows.
        checked: ids of the checks that ran.
        not_checked: ids of the others -> why.
        notes: what is not read of a source, such as its other splits.
    """

    findings: tuple[Finding, ...]
    num_rows: int
    num_eval_rows: int
    formats: Mapping[str, str]
    other_files: frozenset[str]
    lengths: Lengths
    checked: tuple[str, ...]
    not_checked: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Count the findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def counts(self) -> dict[str, dict[Severity, int]]:
        """Count the findings of each check by severity; checks without findings are included."""
        counts = {check: dict.fromkeys(SEVERITIES, 0) for check in self.checked}
        for finding in self.findings:
            counts[finding.check][finding.severity] += 1
        return counts

    def to_json(self) -> str:
        """Return everything as JSON, for programs."""
        counts = self.counts()
        checks = [
            {"id": id, "meaning": CHECKS[id].meaning, "remedy": CHECKS[id].remedy, **counts[id]}
            for id in self.checked
        ]
        tree = {
            "rows": self.num_rows,
            "eval_rows": self.num_eval_rows,
            "formats": dict(self.formats),
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES[:2]},
            "infos": self.count("info"),
            "checks": checks,
            "not_checked": dict(self.not_checked),
            "notes": list(self.notes),
            "lengths": self.lengths.to_dict(),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }
        text = json.dumps(tree, ensure_ascii=False, indent=2)
        return text.encode(errors=ESCAPED).decode()
