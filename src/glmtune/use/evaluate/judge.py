"""A judge: a model at any OpenAI-compatible URL says which of two answers is better.

    ours, theirs      asked twice, in both orders, since judges prefer one position
    both say ours     100        both say theirs  0        a tie, or they disagree  50

`theirs` is the base's answer, or the reference of the row. The verdicts are kept like answers, so
an interrupted run asks only for the rest.

Source of the question: MT-Bench, https://arxiv.org/abs/2306.05685.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import BaseModel, ValidationError

from glmtune.errors import DataError
from glmtune.use.evaluate.answers import AnswersTask
from glmtune.use.evaluate.kept import KeptAnswers, Line, read_kept
from glmtune.use.evaluate.results import Evaluation, Score
from glmtune.use.evaluate.run import Show, kept_beside, score_of
from glmtune.use.evaluate.statistics import Difference, Measured, as_array, mcnemar, verdict_of
from glmtune.use.evaluate.task import Measurement

KEY_VARIABLE = "OPENAI_API_KEY"  # sent as bearer token where it is set
TIMEOUT_SECONDS = 120
WAIT_SECONDS = (1.0, 4.0, 16.0)  # before each new attempt
NUM_WORKERS = 4  # requests at a time
MAX_REPLY_BYTES = 4 * 2**20
MAX_TOKENS = 1024

INSTRUCTION = (
    "You compare two answers of assistants to a question. Judge how correct, helpful and complete "
    "they are, in the language of the question. Their order and their length must not matter. "
    "Explain briefly, then end with [[A]] if answer A is better, [[B]] if answer B is better, or "
    "[[C]] if they are equally good."
)
Choice = Literal["A", "B", "C"]
_VERDICT = re.compile(r"\[\[([ABC])\]\]")


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Reply(BaseModel):
    choices: list[_Choice]


@dataclass(frozen=True, slots=True)
class Judge:
    """A model at a URL.

    Attributes:
        url: of the API, such as http://127.0.0.1:8000/v1.
        model: its name there.
    """

    url: str
    model: str

    def __post_init__(self) -> None:
        """Refuse what is no URL.

        Raises:
            DataError: it has no scheme or no host.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(
                f"the judge is {self.url!r}, expected the URL of an OpenAI-compatible API, such as "
                "http://127.0.0.1:8000/v1."
            )

    def compare(self, question: str, ours: str, theirs: str) -> Literal["win", "tie", "loss"]:
        """Ask in both orders.

        Raises:
            DataError: the server cannot be reached, or gives no verdict.
        """
        first = self._ask(question, ours, theirs)
        second = self._ask(question, theirs, ours)
        if (first, second) == ("A", "B"):
            return "win"
        return "loss" if (first, second) == ("B", "A") else "tie"

    def _ask(self, question: str, a: str, b: str) -> Choice:
        content = f"[Question]\n{question}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}"
        messages = [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": content},
        ]
        body = {"model": self.model, "messages": messages, "temperature": 0}
        reply = self._post({**body, "max_tokens": MAX_TOKENS})
        try:
            text = _Reply.model_validate_json(reply).choices[0].message.content or ""
        except (ValidationError, IndexError):
            shown = reply[:200].decode(errors="replace")
            raise DataError(
                f"{self.url}: expected a chat completion, got {shown!r}. Check the URL of the "
                "judge."
            ) from None
        found: list[Choice] = _VERDICT.findall(text)
        return found[-1] if found else "C"  # no verdict prefers none

    def _post(self, body: Mapping[str, Any]) -> bytes:
        """Send a request, again where the server is busy."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        data = json.dumps(body).encode()
        for wait in (*WAIT_SECONDS, None):
            try:
                with urlopen(Request(url, data, headers), timeout=TIMEOUT_SECONDS) as response:
                    content: bytes = response.read(MAX_REPLY_BYTES)
                    return content
            except HTTPError as error:
                why = f"HTTP {error.code}: {error.read(500).decode(errors='replace').strip()}"
                is_final = error.code < 500 and error.code != 429
            except (URLError, HTTPException, OSError, ValueError) as error:
                why, is_final = str(getattr(error, "reason", error)), isinstance(error, ValueError)
            if is_final or wait is None:
                break
            time.sleep(wait)
        raise DataError(
            f"{url}: the judge does not answer: {why}. Check the URL, the model {self.model!r} and "
            f"{KEY_VARIABLE}; the verdicts so far are kept."
        )


def add_verdicts(
    judge: Judge,
    task: AnswersTask,
    result: Evaluation,
    output: Path,
    *,
    overwrite: bool = False,
    show: Show | None = None,
) -> Evaluation:
    """Let a judge compare the answers of a result, and write the result again.

    Args:
        judge: compares.
        task: the rows.
        result: of `evaluate`, whose answers are next to it.
        output: of the result.
        overwrite: replace verdicts about other answers.
        show: shows verdicts as they come.

    Returns:
        The result with the score `judge`: 50 where neither side wins.

    Raises:
        DataError: the judge cannot be asked.
        OutputError: a file cannot be written.
    """
    pairs = _pairs(task, result, output)
    digest = sha256(repr((pairs, INSTRUCTION)).encode()).hexdigest()[:16]
    identity = {"task": "judge", "judge": judge.model, "url": judge.url, "pairs": digest}
    kept = KeptAnswers(kept_beside(output, "judge"), identity)
    kept.open(overwrite=overwrite)
    waiting = [row for row in pairs if row not in kept.lines]
    show = show or (lambda lines, total, done: iter(lines))
    new = kept.add(_judged(judge, pairs, waiting)) if waiting else ()
    for _ in show(new, len(pairs), len(pairs) - len(waiting)):
        pass
    return _with_score(judge, result, kept, pairs, output)


def _pairs(task: AnswersTask, result: Evaluation, output: Path) -> dict[int, tuple[str, str, str]]:
    """Return question, our answer and theirs of every row that has both."""
    ours = read_kept(output.with_name(result.answers or ""))[1]
    base = read_kept(output.with_name(result.base_answers))[1] if result.base_answers else None
    pairs = {}
    for row, question in task.questions.items():
        theirs = question.reference if base is None else base[row].answer
        if theirs is not None:
            pairs[row] = (question.text, ours[row].answer, theirs)
    return pairs


def _judged(
    judge: Judge, pairs: Mapping[int, tuple[str, str, str]], rows: Sequence[int]
) -> Iterator[Line]:
    with ThreadPoolExecutor(NUM_WORKERS) as workers:
        try:
            verdicts: Iterable[str] = workers.map(lambda row: judge.compare(*pairs[row]), rows)
            for row, verdict in zip(rows, verdicts, strict=True):
                yield Line(row=row, prompt=pairs[row][0], answer=verdict)
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise


_SCORES = {"win": 100.0, "tie": 50.0, "loss": 0.0}


def _with_score(
    judge: Judge, result: Evaluation, kept: KeptAnswers, pairs: Iterable[int], output: Path
) -> Evaluation:
    rows = tuple(pairs)
    if not rows:
        return result
    verdicts = [kept.lines[row].answer for row in rows]
    measured = Measured(as_array([_SCORES.get(verdict, 50.0) for verdict in verdicts]))
    score: Score = score_of(Measurement(rows, measured))
    wins, losses = verdicts.count("win"), verdicts.count("loss")
    p = mcnemar(wins, losses)
    value = score.value - 50
    verdict = verdict_of(value, p, len(rows), "higher")
    difference = Difference(value, score.low - 50, score.high - 50, p, "mcnemar", verdict)
    against = "the base" if result.base_answers else "the references"
    note = (
        f"judge {judge.model} compared with {against}: {wins} better, {losses} worse, "
        f"{len(rows) - wins - losses} equal or not the same in both orders"
    )
    changed = result.model_copy(
        update={
            "scores": {**result.scores, "judge": score},
            "differences": {**result.differences, "judge": difference},
            "notes": (*result.notes, note),
        }
    )
    changed.write(output)
    return changed
