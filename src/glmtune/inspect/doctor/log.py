"""Recognize known failures in the log of a training run."""

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
    """A symptom that a log shows.

    Attributes:
        name: of the symptom.
        line_number: of its first appearance, from 1.
        line: that line.
        cause, remedy: a sentence each.
    """

    name: str
    line_number: int
    line: str
    cause: str
    remedy: str


def diagnose(log: str) -> list[Finding]:
    """Name what a log shows, the first in the log first and mere reports of it last.

    Args:
        log: text of any length; colours and `[rank0]:` are looked through.
    """
    log = _DECORATION.sub("", log.replace("\r\n", "\n"))
    found = []
    for symptom in SYMPTOMS:
        match = re.search(symptom.pattern, log, re.MULTILINE)
        if match:
            found.append((symptom.is_report, match.end(), symptom, match))
    return [_finding(log, symptom, match) for _, _, symptom, match in sorted(found, key=_place)]


def _place(found: tuple[bool, int, Symptom, re.Match[str]]) -> tuple[bool, int]:
    return found[:2]


def _finding(log: str, symptom: Symptom, match: re.Match[str]) -> Finding:
    number = log.count("\n", 0, match.end())
    groups = {name: value for name, value in match.groupdict().items() if value}
    return Finding(
        name=symptom.name,
        line_number=number + 1,
        line=log.split("\n")[number].strip(),
        cause=symptom.cause.format(**groups) if groups else symptom.cause,
        remedy=symptom.remedy,
    )


def last_error_line(log: str) -> str:
    """Give the last line that looks like an error, or else the last that is not empty."""
    lines = [line.strip() for line in _DECORATION.sub("", log).splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or [""])[-1]


def read_log(name: str) -> str:
    """Read a log from a file, or from standard input for `-`; bytes that are no text stay apart.

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
