"""Answer a file of rows; the file of answers is complete or absent.

    rows.json                 answers.jsonl.partial           answers.jsonl
    {"instruction": ...}  ->  identity of the answers     ->  {"row": 1, "answer": ..., ...}
    {"instruction": ...}      {"row": 2, "answer": ...}       {"row": 2, "answer": ..., ...}
                              {"row": 1, "answer": ...}

Answers are appended to the partial file as they end, so an interrupt, a crash or a full disk
loses only those that were being generated. The first line identifies the model, the prompts and the
settings of the answers; they are resumed only with the same ones.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmtune.conversation import Conversation, Message
from glmtune.data.dataset import Dataset, Entry
from glmtune.data.formats import split_answer
from glmtune.data.rows import BadRow, RowError
from glmtune.errors import DataError, OutputError, TemplateError
from glmtune.files import explain_write_error, sync, write_atomically
from glmtune.methods import digest, method
from glmtune.methods.full import FULL_MODEL
from glmtune.model.files import locate
from glmtune.recipe.sections import DataSection
from glmtune.template.base import Template
from glmtune.use.chat import reply_text
from glmtune.use.generate import BATCH_SIZE, Request, Sampling, generate

logger = logging.getLogger(__name__)

SHOWN = 3  # bad rows in the log
# Partial files of earlier versions do not record these, and are resumed without comparing them.
RECORDED_LATER = ("adapter_digest", "model_digest")


@dataclass(frozen=True, slots=True)
class Question:
    """What a row asks.

    Attributes:
        row: its number among all rows, from 1.
        file, line: where it comes from.
        id: the row's own "id", if it has one, as JSON can hold it.
        text: the last turn, for people.
        ids: of the complete prompt.
        reference: the row's own answer, if it has one.
    """

    row: int
    file: str
    line: int
    id: Any
    text: str
    ids: tuple[int, ...]
    reference: str | None


def read_questions(
    section: DataSection, template: Template, *, context_length: int | None = None
) -> list[Question]:
    """Read the rows of `data.train` as questions; the last answer of a row is its reference.

    Args:
        section: which rows, and how they are read.
        template: makes the prompts.
        context_length: the tokens that prompt and answer may have together.

    Raises:
        DataError: a source cannot be read, there are no rows, or, unless `data.bad_rows` is
            "skip", a row cannot be used.
    """
    bad: list[BadRow] = []
    questions = []
    dataset = Dataset.of(section, needs_answer=False)
    for left_out in dataset.left_out:
        logger.info("%s", left_out)
    entries = dataset.read(split_answer)
    for number, entry in enumerate(entries, start=1):
        question = (
            entry
            if isinstance(entry, BadRow)
            else _question(number, entry, template, context_length)
        )
        if isinstance(question, Question):
            questions.append(question)
        elif question.can_be_skipped(section.bad_rows):
            bad.append(question)
        else:
            raise RowError(question)
    if template.reads_thoughts():
        dataset.notes.drop_thoughts()
    for key, note in dataset.notes.unread.items():
        logger.warning("%s", note.describe(key))
    for row in bad[:SHOWN]:
        logger.warning("left out: %s", row)
    if len(bad) > SHOWN:
        logger.warning("left out: %d more rows", len(bad) - SHOWN)
    if not questions:
        raise DataError(f"{', '.join(map(str, section.train))}: there is no row to answer.")
    return questions


def _question(
    number: int,
    entry: Entry[tuple[Conversation, tuple[Message, ...]]],
    template: Template,
    context_length: int | None,
) -> Question | BadRow:
    """Make the prompt of a row; a bad row if it cannot be made or is too long."""
    row, (prompt, answer) = entry.row, entry.value
    try:
        ids = template.prompt_ids(prompt)
    except TemplateError as error:
        return BadRow(row.file, row.line, "", str(error), "")
    if context_length is not None and len(ids) >= context_length:
        reason = (
            f"the prompt has {len(ids):,} tokens, which leaves no room for an answer in the "
            f"{context_length:,} that the model was made for. Shorten it, or take it out."
        )
        return BadRow(row.file, row.line, "", reason, prompt.messages[-1].content[:80])
    return Question(
        row=number,
        file=row.file,
        line=row.line,
        id=_as_json_value(row.get("id")),
        text=prompt.messages[-1].content,
        ids=tuple(ids),
        reference=reply_text(answer) if answer else None,
    )


def _as_json_value(value: Any) -> Any:
    """Return a value as JSON can hold it: dates, bytes and other types of Parquet as text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        if isinstance(value, dict):
            return {str(key): _as_json_value(child) for key, child in value.items()}
        if isinstance(value, list):
            return [_as_json_value(child) for child in value]
        is_bytes = isinstance(value, bytes)
        return value.decode(errors="backslashreplace") if is_bytes else str(value)
    return value


def predict(
    model: Any,
    template: Template,
    questions: Sequence[Question],
    *,
    sampling: Sampling,
    context_length: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[dict[str, Any]]:
    """Answer questions, many at once, and give each as a line of the file when it has ended.

    Args:
        model: a causal language model, with or without an adapter.
        template: of the prompts; parses the answers.
        questions: in any order; the random numbers for a row depend on its number alone.
        sampling: how to sample.
        context_length: the tokens that prompt and answer may have together.
        batch_size: how many are answered at once.

    Raises:
        CheckpointError: the model's scores are not finite.
    """

    def request(question: Question) -> Request:
        room = sampling.max_new_tokens
        if context_length is not None:
            room = min(room, context_length - len(question.ids))
        return Request(question.ids, room, sampling.generator(model.device, question.row))

    requests = map(request, questions)
    for completion in generate(
        model, requests, stop_ids=template.stop_ids, sampling=sampling, batch_size=batch_size
    ):
        question = questions[completion.index]
        line: dict[str, Any] = {"row": question.row, "file": question.file, "line": question.line}
        if question.id is not None:
            line["id"] = question.id
        line |= {
            "prompt": question.text,
            "answer": reply_text(template.parse(completion.ids)),
            "ended": completion.has_ended,
            "tokens": len(completion.ids) - completion.has_ended,
        }
        if question.reference is not None:
            line["reference"] = question.reference
        yield line


class AnswerFile:
    """A file of answers that is being written.

    Args:
        path: of the complete file.
        identity: what decides the answers; a partial file with another identity is not resumed.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.partial = partial_of(path)
        self.identity = json.loads(json.dumps(identity))
        self.lines: dict[int, dict[str, Any]] = {}

    def resume(self) -> None:
        """Read the answers of an interrupted run; an incomplete last line is dropped.

        Raises:
            OutputError: they have another identity, or the file is not one that `write` left.
        """
        if not self.partial.is_file():
            return
        content = self.partial.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        try:
            first, *rest = [json.loads(line) for line in complete.splitlines()] or [self.identity]
            recorded = dict(first.items())
            lines = {line["row"]: line for line in rest}
            if not all(isinstance(line["row"], int) for line in rest):
                raise ValueError("a row without its number")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(
                f"{self.partial}: is damaged, or was not written by glmtune predict ({error}). "
                "Move it away, or start over with --overwrite."
            ) from None
        if changed := self._changed(recorded):
            raise OutputError(
                f"{self.partial}: holds answers of another run; {', '.join(changed)} changed. "
                "Repeat the command that wrote it with --resume, or start over with --overwrite."
            )
        self.lines = lines

    def _changed(self, recorded: dict[str, Any]) -> list[str]:
        """List the keys by which a recorded identity differs from ours."""
        ours = self.identity
        for key in RECORDED_LATER:
            if key not in recorded:
                ours = {name: value for name, value in ours.items() if name != key}
        keys = [*ours, *(key for key in recorded if key not in ours)]
        return [key for key in keys if recorded.get(key) != ours.get(key)]

    def write(self, answers: Iterator[dict[str, Any]]) -> None:
        """Append answers as they come, then write the complete file in the order of rows.

        The partial file goes if there are no answers in it when something fails.

        Raises:
            OutputError: the disk is full, or the folder cannot be written; the answers so far
                stay in the partial file.
        """
        try:
            self._write(answers)
        except BaseException:
            if not self.lines:
                with suppress(OSError):
                    self.partial.unlink()
            raise

    def _write(self, answers: Iterator[dict[str, Any]]) -> None:
        try:
            kept = [self.identity, *self.lines.values()]
            write_atomically(self.partial, "".join(map(_as_line, kept)))
            with self.partial.open("a", encoding="utf-8") as file:
                for answer in answers:
                    file.write(_as_line(answer))
                    file.flush()
                    self.lines[answer["row"]] = answer
                sync(file, self.partial)
            in_order = (self.lines[row] for row in sorted(self.lines))
            write_atomically(self.path, "".join(map(_as_line, in_order)))
        except OSError as error:
            raise OutputError(_explain(self.partial, error)) from error
        except OutputError as error:
            if isinstance(error.__cause__, OSError):  # its advice is about runs
                raise OutputError(_explain(self.path, error.__cause__)) from error.__cause__
            raise
        with suppress(OSError):  # the answers are complete without it
            self.partial.unlink()


def _explain(path: Path, error: OSError) -> str:
    again = "repeat the command with --resume"
    return explain_write_error(path, error, again=again, elsewhere="--output")


def partial_of(path: Path) -> Path:
    """Return the path of a file of answers while it is incomplete."""
    return path.with_name(f"{path.name}.partial")


def check_output(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output that cannot be written, or whose contents would be lost.

    Raises:
        OutputError: names the file, and what to do.
    """
    if not path.absolute().parent.is_dir():
        raise OutputError(
            f"{path}: there is no folder {path.parent}. Create it, or choose another."
        )
    if not os.access(path.absolute().parent, os.W_OK):
        raise OutputError(
            f"{path}: the folder {path.parent} cannot be written: permission denied, or the disk "
            "is read-only. Choose another --output."
        )
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file such as {path / 'answers.jsonl'}.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already. Choose another --output, or --overwrite it.")
    partial = partial_of(path)
    if partial.exists() and not (resume or overwrite):
        raise OutputError(
            f"{partial}: holds the answers of an interrupted run. Continue with --resume, or "
            "start over with --overwrite."
        )


def identify(
    model: str,
    adapter: Path | None,
    template: Template,
    questions: Sequence[Question],
    sampling: Sampling,
    dtype: str,
) -> dict[str, Any]:
    """Return what decides the answers: model, adapter, template, prompts and settings.

    Args:
        model: folder or hub id of the base. The files of a hub id are not read.
        adapter: its folder; None for the base alone.
        template: of the prompts.
        questions: to answer.
        sampling: how to sample.
        dtype: of the weights, or "auto".
    """
    prompts = hashlib.sha256()
    for question in questions:
        prompts.update(json.dumps([question.row, question.ids]).encode())
    weights = [] if adapter is None else method.method_in(adapter).weight_files(adapter)
    base = Path(locate(model))
    return {
        "model": model,
        "model_digest": FULL_MODEL.digest(base) if base.is_dir() else None,
        "adapter": [digest.short_sha256(file) for file in weights],
        "adapter_digest": None if adapter is None else method.digest(adapter),
        "template": template.fingerprint[:16],
        "prompts": prompts.hexdigest()[:16],
        "dtype": dtype,
        "sampling": asdict(sampling),
    }


def _as_line(value: dict[str, Any]) -> str:
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, in an id or in the name of a file
        line = json.dumps(value)
    return line + "\n"
