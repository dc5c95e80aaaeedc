"""Prompts, and what the base and the tuned model answer to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.template.base import IGNORE, Example, Template

PATIENCE = 16  # tokens that an answer may take beyond twice the data's


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked.

    Attributes:
        ids: up to the first token that the model writes.
        text: the ids as text, special tokens and all.
        expected: the answer in the data, "" when there is none.
        num_expected: its tokens, with the one that ends it; 0 when it is not known.
    """

    ids: tuple[int, ...]
    text: str
    expected: str = ""
    num_expected: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, greedily.

    Attributes:
        text: as chat would show it.
        num_tokens: how many were written, without the one that ends the answer.
        has_ended: whether the model ended it, rather than the limit.
    """

    text: str
    num_tokens: int
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt, answered by the base, before anything was tuned, and by the tuned model."""

    prompt: Prompt
    base: Answer
    tuned: Answer


def first_prompt(example: Example, template: Template, tokenizer: Any) -> Prompt:
    """Cut an encoded row before its first learned token.

    Raises:
        ValueError: nothing in the row is learned.
    """
    from glmtune.use.chat import reply_text  # loads torch; a report needs only the classes

    start = next((i for i, label in enumerate(example.labels) if label != IGNORE), None)
    if start is None:
        raise ValueError("nothing in this example is learned, so it has no answer")
    learned = example.labels[start:]
    end = learned.index(IGNORE) if IGNORE in learned else len(learned)
    ids = tuple(example.input_ids[:start])
    expected = reply_text(template.parse(learned[:end]))
    return Prompt(ids, tokenizer.decode(list(ids)), expected, end)


def answer_limit(prompts: Sequence[Prompt], max_new_tokens: int) -> int:
    """Say how long to wait for answers: twice as long as the data's, and a little more.

    Args:
        prompts: to ask.
        max_new_tokens: the most, and what holds where an answer is not known.
    """
    if not all(prompt.num_expected for prompt in prompts):
        return max_new_tokens
    longest = max((prompt.num_expected for prompt in prompts), default=0)
    return min(max_new_tokens, 2 * longest + PATIENCE)


def answer_all(
    model: Any, template: Template, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[Answer]:
    """Answer prompts greedily, many at once.

    The model's training mode is put back afterwards.
    """
    from glmtune.use.chat import reply_text
    from glmtune.use.generate import Request, Sampling, write

    requests = [Request(prompt.ids, max_new_tokens) for prompt in prompts]
    greedy = Sampling(temperature=0)
    answers: dict[int, Answer] = {}
    for written in write(model, requests, stop_ids=template.stop_ids, sampling=greedy):
        text = reply_text(template.parse(written.ids))
        num_tokens = len(written.ids) - written.has_ended
        answers[written.index] = Answer(text, num_tokens, written.has_ended)
    return [answers[index] for index in range(len(prompts))]
