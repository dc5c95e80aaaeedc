r"""What a finished run has to show: that answers end, and that chat asks as training did.

Each proof has a verdict and one sentence; a proof that nobody ran is "not run", never passed.

Prompts come from encoded rows, which are ids alone. The ids before the first learned token
are a prompt: an answer is learned from the very token that the model writes first, so what
stands before it is what `Template.prompt_ids` gives for the turns before that answer.

    ids       [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>
    labels       -     -     -     - -   -  -       -        ▁ \n ▁很 好 </s>
              ------------------ prompt ------------------   --- expected ---
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glmtune.chat import reply_text
from glmtune.conversation import Conversation
from glmtune.errors import TemplateError
from glmtune.generate import Request, Sampling, write
from glmtune.template import IGNORE, Example, Template, is_learned

ALIVE = "every adapted layer learned"
SAVED = "reloaded from disk it is the same"
TEMPLATE = "chat asks as training did"
STOPS = "answers end by themselves"
PROOFS = (ALIVE, SAVED, TEMPLATE, STOPS)  # what a report says "not run" of when it is missing


@dataclass(frozen=True, slots=True)
class Proof:
    """One check of a run, and how it ended.

    Attributes:
        name: what was to be shown, such as one of `PROOFS`.
        verdict: "not run" for a check that had nothing to look at.
        detail: what was measured and, if it failed, what to do.
    """

    name: str
    verdict: Literal["passed", "failed", "not run"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked.

    Attributes:
        ids: up to the first token that the model writes.
        text: the ids as text, special tokens and all.
        expected: the answer in the data, "" when there is none.
    """

    ids: tuple[int, ...]
    text: str
    expected: str = ""


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


@dataclass(frozen=True, slots=True)
class StopRate:
    """How many prompts got an answer that ended by itself.

    Attributes:
        num_prompts: how many were asked.
        endless: the indices of those whose answer went on to the limit.
        max_new_tokens: the limit.
    """

    num_prompts: int
    endless: tuple[int, ...]
    max_new_tokens: int

    @property
    def share(self) -> float:
        """The part that ended, 0 to 1."""
        return 1 - len(self.endless) / self.num_prompts if self.num_prompts else 0.0

    def proof(self, min_share: float, what: str = "held-out") -> Proof:
        """Judge: at least this share has to end; `what` says what prompts these were."""
        if not self.num_prompts:
            return Proof(STOPS, "not run", "There are no held-out rows to ask.")
        told = (
            f"{self.num_prompts - len(self.endless)} of {self.num_prompts} {what} prompts got "
            f"an answer that ended within {self.max_new_tokens} tokens"
        )
        if self.share >= min_share:
            return Proof(STOPS, "passed", f"{told}.")
        return Proof(
            STOPS,
            "failed",
            f"{told}, expected {min_share:.0%}. Look with `glmtune inspect` whether the rows' "
            "answers end in a learned stop token, and train longer if they do.",
        )


def first_prompt(example: Example, template: Template, tokenizer: Any) -> Prompt:
    """Cut an encoded row before its first learned token.

    Raises:
        ValueError: nothing in the row is learned.
    """
    start = next((i for i, label in enumerate(example.labels) if label != IGNORE), None)
    if start is None:
        raise ValueError("nothing in this example is learned, so it has no answer")
    learned = example.labels[start:]
    end = learned.index(IGNORE) if IGNORE in learned else len(learned)
    ids = tuple(example.input_ids[:start])
    return Prompt(ids, tokenizer.decode(list(ids)), reply_text(template.parse(learned[:end])))


def stop_rate(
    model: Any, template: Template, prompts: Sequence[Prompt], max_new_tokens: int
) -> StopRate:
    """Ask held-out prompts, and count the answers that end by themselves.

    Args:
        model: a causal language model, with an adapter over it or not.
        template: says what ends an answer.
        prompts: what to ask.
        max_new_tokens: the longest answer; one as long as this counts as endless.
    """
    answers = answer_all(model, template, prompts, max_new_tokens)
    endless = tuple(index for index, answer in enumerate(answers) if not answer.has_ended)
    return StopRate(len(prompts), endless, max_new_tokens)


def answer_all(
    model: Any, template: Template, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[Answer]:
    """Answer prompts greedily, many at once.

    The model's training mode is put back afterwards.
    """
    requests = [Request(prompt.ids, max_new_tokens) for prompt in prompts]
    greedy = Sampling(temperature=0)
    answers: dict[int, Answer] = {}
    for written in write(model, requests, stop_ids=template.stop_ids, sampling=greedy):
        text = reply_text(template.parse(written.ids))
        num_tokens = len(written.ids) - written.has_ended
        answers[written.index] = Answer(text, num_tokens, written.has_ended)
    return [answers[index] for index in range(len(prompts))]


def check_template_agrees(template: Template, conversations: Iterable[Conversation]) -> int:
    """Prove that chat asks as training did: the ids before each answer are those of its prompt.

    Args:
        template: that of the run.
        conversations: rows of the run; the template can encode them.

    Returns:
        How many learned answers were compared.

    Raises:
        TemplateError: names the conversation and the turn where the ids part.
    """
    num_answers = 0
    for number, conversation in enumerate(conversations, start=1):
        example = template.encode(conversation)
        starts = _learned_starts(example)
        prompts = _prompt_lengths(template, conversation, example.input_ids, number)
        if astray := sorted(starts - prompts):
            raise TemplateError(
                f"conversation {number}: training begins to learn at token {astray[0]}, but chat "
                f"would begin an answer at {', '.join(map(str, sorted(prompts))) or 'none'}. "
                "Report this with the row: the template contradicts itself."
            )
        num_answers += sum(example.labels[length] != IGNORE for length in prompts)
    return num_answers


def _prompt_lengths(
    template: Template, conversation: Conversation, trained: Sequence[int], number: int
) -> set[int]:
    """Say where chat would begin to write each answer, and compare what is before it."""
    lengths = set()
    messages = conversation.messages
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = template.prompt_ids(Conversation(messages[:turn]))
        if list(trained[: len(prompt)]) == prompt:
            lengths.add(len(prompt))
        # A call may belong to the remark before it: then nobody asks between the two.
        elif is_learned(message) and (turn == 0 or messages[turn - 1].role != "assistant"):
            raise _parting(prompt, trained, f"conversation {number}, turn {turn}")
    return lengths


def _learned_starts(example: Example) -> set[int]:
    before = [IGNORE, *example.labels]
    return {
        index
        for index, label in enumerate(example.labels)
        if label != IGNORE and before[index] == IGNORE
    }


def _parting(prompt: Sequence[int], trained: Sequence[int], where: str) -> TemplateError:
    pairs = zip(prompt, trained, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(trained)))
    return TemplateError(
        f"{where}: at token {at} chat has {list(prompt[at : at + 4])}, but training has "
        f"{list(trained[at : at + 4])}. An adapter trained so would be asked in other tokens "
        "than it learned. Report this with the row: the template contradicts itself."
    )
