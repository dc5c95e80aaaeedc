"""Recognize known failures in the log of a training run.

    log        RuntimeError: element 0 of tensors does not require grad ...
               torch.distributed.elastic...ChildFailedError
    findings   no gradient (line 1), then another rank failed (line 2)

Findings are in the order of the log, since the first error usually causes the later ones. A
symptom that only reports another failure comes last.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glmtune.errors import DataError
from glmtune.inspect.doctor.patterns import Alternative, split_alternatives
from glmtune.inspect.doctor.symptoms import SYMPTOMS, Symptom
from glmtune.units import MIB, readable

_ERROR_LINE = re.compile(r"^(\S{0,200}?(Error|Exception|Interrupt|Exit)\b|error:|fatal:)", re.I)
_COLOR = re.compile(r"\x1b\[[0-9;?]{0,40}[A-Za-z]")
_RANK = re.compile(r"^\[?(rank|default)\d+\]?:[ \t]?", re.MULTILINE)
MAX_BYTES = 128 * MIB  # of a log; a larger file is no log of a run, or its end is what matters
SAMPLE_BYTES = 64 * 1024  # by which a file that is no text is recognized
CONTROL = bytes(set(range(32)) - {*b"\b\t\n\f\r\x1b"})  # characters that texts do not have


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

    The time is proportional to the length of the log.

    Args:
        log: text of any length; ANSI colors and `[rank0]:` prefixes are ignored.
    """
    log = _undecorated(log)
    matches = [(each, _first_match(each, log)) for each in SYMPTOMS]
    found = [(symptom, match) for symptom, match in matches if match is not None]
    found.sort(key=lambda pair: (pair[0].is_report, pair[1].end()))
    return [_finding(log, symptom, match) for symptom, match in found]


def _undecorated(log: str) -> str:
    """Remove colors and the names of ranks at the start of lines, keeping the lines."""
    log = log.replace("\r\n", "\n")
    if "\x1b[" in log:
        log = _COLOR.sub("", log)
    return _RANK.sub("", log) if "rank" in log or "default" in log else log


def _first_match(symptom: Symptom, log: str) -> re.Match[str] | None:
    """Return the first match of a symptom in a log."""
    matches = [_search(one, log) for one in split_alternatives(symptom.pattern)]
    return min((m for m in matches if m is not None), key=lambda m: m.end(), default=None)


def _search(alternative: Alternative, log: str) -> re.Match[str] | None:
    """Search a log, only in the lines that have the alternative's literal, if it has one."""
    if alternative.literal not in log:
        return None
    if alternative.spans_lines or not alternative.literal:
        return alternative.pattern.search(log)
    for start, end in _lines_with(alternative.literal, log):
        if match := alternative.pattern.search(log, start, end):
            return match
    return None


def _lines_with(literal: str, log: str) -> Iterator[tuple[int, int]]:
    """Yield where the lines that have a literal begin and end."""
    found = log.find(literal)
    while found >= 0:
        start = log.rfind("\n", 0, found) + 1
        end = log.find("\n", found)
        end = len(log) if end < 0 else end
        yield start, end
        found = log.find(literal, end)


def _finding(log: str, symptom: Symptom, match: re.Match[str]) -> Finding:
    end = match.end()
    start = max(log.rfind("\n", 0, end), log.rfind("\r", 0, end)) + 1  # \r: of a progress bar
    line = re.compile(r"[^\n\r]*").match(log, start)
    assert line is not None  # it may be empty
    groups = {name: value for name, value in match.groupdict().items() if value}
    return Finding(
        name=symptom.name,
        line_number=log.count("\n", 0, end) + 1,
        line=line.group().strip(),
        cause=symptom.cause.format(**groups) if groups else symptom.cause,
        remedy=symptom.remedy,
    )


def last_error_line(log: str) -> str:
    """Return the last line that looks like an error, or else the last that is not empty."""
    last = ""
    for line in reversed(_undecorated(log).splitlines()):
        stripped = line.strip()
        if is_error_line(stripped):
            return stripped
        last = last or stripped
    return last


def is_error_line(line: str) -> bool:
    """Whether a line of a log looks like an error."""
    return _ERROR_LINE.match(line) is not None


def read_log(name: str) -> str:
    """Read a log from a file, or from standard input for `-`.

    Args:
        name: UTF-8, UTF-16 as PowerShell redirects it, or GB18030; bytes that are neither are
            replaced.

    Raises:
        DataError: there is no such file, or it is not a text, or too large.
    """
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read: {error.strerror}. Give a text file, or - for standard input."
        ) from None
    if len(content) > MAX_BYTES:
        raise DataError(
            f"{name}: has more than {readable(MAX_BYTES)}, expected the log of a run. Give its "
            "last part: tail -c 50000000 FILE | glmtune doctor -"
        )
    return _decoded(content, name)


def _decoded(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    sample = content[:SAMPLE_BYTES]
    if len(sample.translate(None, CONTROL)) < 0.99 * len(sample):
        raise DataError(
            f"{name}: is not a text: it has control characters. Give the text that the failed "
            "command printed, or - for standard input."
        )
    for encoding in ("utf-8", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode("utf-8", errors="replace")
