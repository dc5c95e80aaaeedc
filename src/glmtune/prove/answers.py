r"""Prompts cut from encoded rows, and greedy answers to them.

An encoded row is ids alone. The ids before its first learned token are a prompt: an answer is
learned from the very token that the model generates first, so they equal what
`Template.prompt_ids` gives for the turns before that answer. Where prompts are learned too
(`data.train_on_prompt`), the row remembers how many ids that are.

    ids       [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>
    labels       -     -     -     - -   -  -       -        ▁ \n ▁很 好 </s>
              ------------------ prompt ------------------   --- expected ---
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.template.base import IGNORE, Example, Template

EXTRA_TOKENS = 16  # of an answer, beyond twice the length of the data's answers


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked.

    Attributes:
        ids: up to the first token that the model generates.
        text: the ids as text, with special tokens.
        expected: the answer in the data, "" if there is none.
        num_expected: its tokens, with the stop token; 0 if it is not known.
    """

    ids: tuple[int, ...]
    text: str
    expected: str = ""
    num_expected: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, greedily.

    Attributes:
        text: as chat shows it.
        num_tokens: without the stop token.
        has_ended: whether the model ended it with a stop token, rather than the limit.
    """

    text: str
    num_tokens: int
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt, answered by the base before tuning, and by the tuned model."""

    prompt: Prompt
    base: Answer
    tuned: Answer


def first_prompt(example: Example, template: Template, tokenizer: Any) -> Prompt:
    """Cut an encoded row before its first learned token.

    Raises:
        ValueError: nothing in the row is learned.
    """
    from glmtune.use.chat import reply_text  # loads torch; a report needs only the classes

    start = example.prompt_length
    if start is None:
        start = next((i for i, label in enumerate(example.labels) if label != IGNORE), None)
    if start is None:
        raise ValueError("nothing in this example is learned, so it has no answer")
    learned = example.labels[start:]
    end = learned.index(IGNORE) if IGNORE in learned else len(learned)
    if example.prompt_length is not None:  # the next question is learned, too
        stops = (at for at, label in enumerate(learned) if label in template.stop_ids)
        end = min(end, next(stops, end - 1) + 1)
    ids = tuple(example.input_ids[:start])
    expected = reply_text(template.parse(learned[:end]))
    return Prompt(ids, tokenizer.decode(list(ids)), expected, end)


def last_prompt(example: Example, template: Template, tokenizer: Any) -> Prompt:
    """Cut an encoded row before its last answer.

    Raises:
        ValueError: nothing in the row is learned.
    """
    learned = [label != IGNORE for label in example.labels]
    if not any(learned):
        raise ValueError("nothing in this example is learned, so it has no answer")
    end = len(learned) - learned[::-1].index(True)
    start = end
    while start and learned[start - 1]:
        start -= 1
    ids, labels = example.input_ids[:end], [IGNORE] * start + example.labels[start:end]
    return first_prompt(Example(ids, labels), template, tokenizer)


def answer_limit(prompts: Sequence[Prompt], max_new_tokens: int) -> int:
    """Return the maximum length of answers: twice the longest in the data, and a few tokens more.

    Args:
        prompts: to answer.
        max_new_tokens: the upper limit, also used if an expected answer is not known.
    """
    if not all(prompt.num_expected for prompt in prompts):
        return max_new_tokens
    longest = max((prompt.num_expected for prompt in prompts), default=0)
    return min(max_new_tokens, 2 * longest + EXTRA_TOKENS)


def answer_all(
    model: Any, template: Template, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[Answer]:
    """Answer prompts greedily, many at once; the model's training mode is restored afterwards.

    Args:
        model: a causal language model, with or without an adapter.
        template: defines the stop tokens, and parses the answers.
        prompts: to answer.
        max_new_tokens: the longest answer; one that reaches it without a stop token has not ended.
    """
    from glmtune.use.chat import reply_text
    from glmtune.use.generate import Request, Sampling, generate

    requests = [Request(prompt.ids, max_new_tokens) for prompt in prompts]
    greedy = Sampling(temperature=0)
    answers: dict[int, Answer] = {}
    for completion in generate(model, requests, stop_ids=template.stop_ids, sampling=greedy):
        text = reply_text(template.parse(completion.ids))
        num_tokens = len(completion.ids) - completion.has_ended
        answers[completion.index] = Answer(text, num_tokens, completion.has_ended)
    return [answers[index] for index in range(len(prompts))]
