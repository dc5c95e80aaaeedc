"""Held-out questions -> a model's answers, and how many are right to the letter.

Prompts are built and answers are read by the template that trained the model, so a wrong
answer is never the fault of another prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.conversation import Conversation
from glmtune.data.formats import FORMATS, convert
from glmtune.data.rows import read_rows
from glmtune.template import Template

BATCH_ROWS = 80
MAX_NEW_TOKENS = 32  # more than any answer of the demo has


@dataclass(frozen=True, slots=True)
class Question:
    """One turn of a user, and what ought to be said to it."""

    prompt: Conversation
    expected: str

    @property
    def text(self) -> str:
        """What is asked."""
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


@torch.no_grad()
def answer(
    model: Any, tokenizer: Any, template: Template, questions: Sequence[Question]
) -> list[str]:
    """Answer questions, many at once, always with the likeliest token."""
    answers: list[str] = []
    for start in range(0, len(questions), BATCH_ROWS):
        chosen = questions[start : start + BATCH_ROWS]
        prompts = [template.prompt_ids(question.prompt) for question in chosen]
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")  # on the left
        generated = model.generate(
            **inputs.to(model.device),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(template.stop_ids),
            pad_token_id=tokenizer.pad_token_id,
        )
        new = generated[:, inputs["input_ids"].size(1) :]  # (batch, new tokens)
        answers += [template.parse(ids)[-1].content for ids in new.tolist()]
    return answers


def count_right(questions: Sequence[Question], answers: Sequence[str]) -> int:
    """Count the answers that are right to the letter."""
    return sum(q.expected == a for q, a in zip(questions, answers, strict=True))
