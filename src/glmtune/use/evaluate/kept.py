"""Answers of a model, kept in a file: the first line identifies them, then one line for each row.

    {"identity": {"model": ..., "prompts": ..., "sampling": ...}}
    {"row": 2, "answer": ..., "ended": true, "tokens": 7, ...}
    {"row": 1, ...}

Answers are appended as they end, in any order. An evaluation that was interrupted continues with
the rows that are missing, and another metric needs no model at all.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmtune.errors import OutputError
from glmtune.files import explain_write_error, write_atomically

MAX_LINE_BYTES = 2**26
LogProbability = Annotated[float, Field(le=0, allow_inf_nan=False)]


class Line(BaseModel):
    """What a model did with a row.

    Attributes:
        row: its number, from 1.
        file, line: where it comes from.
        id: the row's own.
        prompt: the text that was asked, for people.
        answer: the text; of a choice by likelihood, the letter.
        ended: whether the model ended it by itself.
        tokens: of the answer, or of the text whose likelihood was measured.
        nats: of a text: minus the logarithm of its likelihood.
        letters: of a choice: the log-likelihood of each letter.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    row: Annotated[int, Field(ge=1)]
    file: str = ""
    line: int = 0
    id: Any = None
    prompt: str = ""
    answer: str = ""
    ended: bool = True
    tokens: Annotated[int, Field(ge=0)] = 0
    nats: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    letters: Mapping[str, LogProbability] | None = None


class _First(BaseModel):
    kind: Literal["answers of glmtune evaluate"]
    identity: dict[str, Any]


@dataclass(slots=True)
class KeptAnswers:
    """The file of the answers of one model.

    Attributes:
        path: of the file.
        identity: what decides the answers.
        lines: by the number of the row.
    """

    path: Path
    identity: dict[str, Any]
    lines: dict[int, Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identity = json.loads(json.dumps(self.identity))

    def open(self, *, overwrite: bool) -> None:
        """Read the answers that are there; an incomplete last line is dropped.

        Args:
            overwrite: whether answers of another model or of other prompts may be replaced.

        Raises:
            OutputError: the file is something else, or has another identity.
        """
        if not self.path.exists():
            return
        identity, lines = read_kept(self.path)
        keys = [*self.identity, *(key for key in identity if key not in self.identity)]
        changed = [key for key in keys if identity.get(key) != self.identity.get(key)]
        if not changed:
            self.lines = lines
        elif not overwrite:
            raise OutputError(
                f"{self.path}: holds answers of another evaluation; {', '.join(changed)} changed. "
                "Choose another --output, or replace them with --overwrite."
            )

    def add(self, new: Iterable[Line]) -> Iterator[Line]:
        """Append answers as they come, and give each when it is written.

        Raises:
            OutputError: the file cannot be written.
        """
        first = {"kind": "answers of glmtune evaluate", "identity": self.identity}
        kept = [_text(first), *map(_line_text, self.lines.values())]
        write_atomically(self.path, "".join(kept))  # also without an incomplete last line
        try:
            with self.path.open("a", encoding="utf-8") as file:
                for line in new:
                    file.write(_line_text(line))
                    file.flush()
                    self.lines[line.row] = line
                    yield line
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(explain_write_error(self.path, error)) from error


def read_kept(path: Path) -> tuple[dict[str, Any], dict[int, Line]]:
    """Read the identity and the lines of a file of answers.

    Raises:
        OutputError: it cannot be read, or `glmtune evaluate` did not write it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}.") from None
    complete = content[: content.rfind(b"\n") + 1].splitlines()
    number = 0
    try:
        if not complete or len(max(complete, key=len)) > MAX_LINE_BYTES:
            raise ValueError("there is no complete line in it, or one of more than 64 MiB")
        identity = _First.model_validate_json(complete[0]).identity
        lines = {}
        for each in complete[1:]:
            number += 1
            line = Line.model_validate_json(each)
            lines[line.row] = line
    except ValueError as error:  # a ValidationError is one
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise OutputError(
            f"{path}:{number + 1}: is not a line that glmtune evaluate wrote ({why}). Choose "
            "another --output, or delete the file to answer its rows again."
        ) from None
    return identity, lines


def _line_text(line: Line) -> str:
    return _text(line.model_dump(exclude_none=True))


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        text = json.dumps(value)
    return text + "\n"


def check_can_write(path: Path, *, overwrite: bool) -> None:
    """Refuse a result that cannot be written, or that would replace another.

    Raises:
        OutputError: names the file, and what to do.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file such as {path / 'scores.json'}.")
    if not folder.is_dir():
        raise OutputError(
            f"{path}: there is no folder {path.parent}. Create it, or choose another --output."
        )
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path}: exists already. Choose another --output, or --overwrite it; answers that fit "
            "are kept."
        )
    try:
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(explain_write_error(path, error)) from None
