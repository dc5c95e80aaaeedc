"""Held-out questions -> a model's answers, and how many are right to the letter.

Prompts are built and answers are read by the template that trained the model, so a wrong
answer is never the fault of another prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.conversation import Conversation
from glmtune.data.formats import FORMATS, convert
from glmtune.data.sources import read_rows
from glmtune.template.base import Template
from glmtune.use.generate import Request, Sampling, generate

MAX_NEW_TOKENS = 64  # no answer of the demo is longer


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the expected answer."""

    prompt: Conversation
    expected: str

    @property
    def text(self) -> str:
        """The text of the prompt's last turn."""
        return self.prompt.messages[-1].content


def read_questions(path: Path) -> list[Question]:
    """Read alpaca rows as questions.

    Raises:
        DataError: a row cannot be read.
    """
    conversations = [convert(row, FORMATS["alpaca"]) for row in read_rows(path)]
    return [
        Question(Conversation(messages[:-1]), messages[-1].content)
        for messages in (conversation.messages for conversation in conversations)
    ]


def answer(model: Any, template: Template, questions: Sequence[Question]) -> list[str]:
    """Answer questions, many at once, always with the likeliest token."""
    requests = [Request(template.prompt_ids(q.prompt), MAX_NEW_TOKENS) for q in questions]
    greedy = Sampling(temperature=0)
    answers = {
        written.index: template.parse(written.ids)[-1].content
        for written in generate(model, requests, stop_ids=template.stop_ids, sampling=greedy)
    }
    return [answers[index] for index in range(len(questions))]


def count_right(questions: Sequence[Question], answers: Sequence[str]) -> int:
    """Count the answers that are right to the letter."""
    return sum(q.expected == a for q, a in zip(questions, answers, strict=True))
