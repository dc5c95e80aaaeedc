"""Recognize known failures in the log of a training run.

    log        RuntimeError: element 0 of tensors does not require grad ...
               torch.distributed.elastic...ChildFailedError
    findings   no gradient (line 1), then another rank failed (line 2)

Findings are in the order of the log, since the first error usually causes the later ones. A
symptom that only reports another failure comes last.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from glmtune.errors import DataError
from glmtune.inspect.doctor.symptoms import SYMPTOMS, Symptom

_ERROR_LINE = re.compile(r"^(\S*?(Error|Exception|Interrupt|Exit)\b|error:|fatal:)", re.IGNORECASE)
_DECORATION = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|^\[?(rank|default)\d+\]?:\s?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom that was found in a log.

    Attributes:
        name: of the symptom.
        line_number: of its first appearance, from 1.
        line: that line.
        cause, remedy: one sentence each.
    """

    name: str
    line_number: int
    line: str
    cause: str
    remedy: str


def diagnose(log: str) -> list[Finding]:
    """Find the known symptoms in a log, in its order; those that report other failures come last.

    Args:
        log: text of any length; ANSI colors and `[rank0]:` prefixes are ignored.
    """
    log = _DECORATION.sub("", log.replace("\r\n", "\n"))
    matches = [(each, re.search(each.pattern, log, re.MULTILINE)) for each in SYMPTOMS]
    found = [(symptom, match) for symptom, match in matches if match is not None]
    found.sort(key=lambda pair: (pair[0].is_report, pair[1].end()))
    return [_finding(log, symptom, match) for symptom, match in found]


def _finding(log: str, symptom: Symptom, match: re.Match[str]) -> Finding:
    line_index = log.count("\n", 0, match.end())
    groups = {name: value for name, value in match.groupdict().items() if value}
    return Finding(
        name=symptom.name,
        line_number=line_index + 1,
        line=log.split("\n")[line_index].strip(),
        cause=symptom.cause.format(**groups) if groups else symptom.cause,
        remedy=symptom.remedy,
    )


def last_error_line(log: str) -> str:
    """Return the last line that looks like an error, or else the last that is not empty."""
    lines = [line.strip() for line in _DECORATION.sub("", log).splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or [""])[-1]


def read_log(name: str) -> str:
    """Read a log from a file, or from standard input for `-`; invalid UTF-8 is replaced.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if name == "-":
        return sys.stdin.buffer.read().decode("utf-8", errors="replace")
    try:
        return Path(name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read: {error.strerror}. Give a text file, or - for standard input."
        ) from None
