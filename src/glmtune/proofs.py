r"""What a finished run has to show of what it trained, and of its prompts.

What was trained is the same in memory, on disk, streamed and merged. Answers end by themselves.
Chat asks as training did.

Each proof has a verdict and one sentence; a proof that nobody ran is "not run", never passed.

Prompts come from encoded rows, which are ids alone. The ids before the first learned token
are a prompt: an answer is learned from the very token that the model writes first, so what
stands before it is what `Template.prompt_ids` gives for the turns before that answer.

    ids       [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>
    labels       -     -     -     - -   -  -       -        ▁ \n ▁很 好 </s>
              ------------------ prompt ------------------   --- expected ---
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from glmtune import adapter, tuning
from glmtune.chat import reply_text
from glmtune.conversation import Conversation
from glmtune.errors import TemplateError, TrainingError
from glmtune.generate import Request, Sampling, draw, make_cache, write
from glmtune.template import IGNORE, Example, Template, is_learned

ALIVE = "all that is trained has learned"
SAVED = "reloaded from disk it is the same"
STREAMED = "streamed from disk it answers the same"
MERGED = "merged into the base it answers the same"
TEMPLATE = "chat asks as training did"
STOPS = "answers end by themselves"
FORGETS = "what the base knew is still there"
# What a report says "not run" of when it is missing.
PROOFS = (ALIVE, SAVED, STREAMED, MERGED, TEMPLATE, STOPS, FORGETS)

PROBE_TOKENS = 8  # of an answer that is streamed, and then scored in one pass
PATIENCE = 16  # tokens that an answer may take beyond twice the data's
NOISE = 3  # times what rounding does to the same weights, merged ones may differ
MOVED = 2  # times what one rounding of its input does to a model, streamed scores may differ


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


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two computations of the same scores are apart.

    Attributes:
        largest: the largest difference of two scores, as a share of how far the scores of a
            token spread (their standard deviation); NaN if a score is not finite.
        num_tokens: how many were scored.
        num_same: at how many of them both put the same token first. Where they do not, the two
            tokens were closer than twice the largest difference.
    """

    largest: float
    num_tokens: int
    num_same: int

    def __str__(self) -> str:
        return (
            f"{self.num_same} of {self.num_tokens} first choices are the same, and scores differ "
            f"by {_percent(self.largest)} of their spread at most"
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, the answer that was streamed from disk, and what the trained model thinks of it.

    Attributes:
        prompt: its ids.
        answer: ids, drawn one by one with a cache, greedily.
        streamed: the scores they were drawn from, float32, (answer, vocab).
        trained: of what is in memory, all in one pass.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    streamed: Tensor
    trained: Tensor


def _percent(share: float) -> str:
    return f"{100 * share:,.0f}%" if share >= 1 else f"{100 * share:.3g}%"


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
    return count_ended(answer_all(model, template, prompts, max_new_tokens), max_new_tokens)


def count_ended(answers: Sequence[Answer], max_new_tokens: int) -> StopRate:
    """Count the answers that ended by themselves."""
    endless = tuple(index for index, answer in enumerate(answers) if not answer.has_ended)
    return StopRate(len(answers), endless, max_new_tokens)


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


def probe(model: Any, folder: Path, template: Template, prompts: Sequence[Prompt]) -> list[Probe]:
    """Let what is on disk answer prompts, as chat does, and what is in memory score that.

    Args:
        model: what was trained; in evaluation mode afterwards.
        folder: where it was saved.
        template: says what ends an answer.
        prompts: what to ask.
    """
    model.eval()
    with tuning.as_saved(model, folder) as saved:
        streamed = [_stream(saved, template, prompt.ids) for prompt in prompts]
    return [
        Probe(prompt.ids, answer, scores, score_answer(model, prompt.ids, answer))
        for prompt, (answer, scores) in zip(prompts, streamed, strict=True)
    ]


def _stream(
    model: Any, template: Template, prompt: Sequence[int]
) -> tuple[tuple[int, ...], Tensor]:
    """Draw an answer as a chat session does; its ids, and the scores of each, (answer, vocab)."""
    scores: list[Tensor] = []
    hook = model.register_forward_hook(
        lambda _, __, output: scores.append(output.logits[0, -1].float())
    )
    try:
        for written, _ in draw(
            model,
            [Request(prompt, PROBE_TOKENS)],
            make_cache(model),
            stop_ids=template.stop_ids,
            sampling=Sampling(temperature=0),
        ):
            answer = written.ids
    finally:
        hook.remove()
    return tuple(answer), torch.stack(scores)


@torch.no_grad()
def score_answer(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Score the tokens of an answer in one pass without a cache; float32, (answer, vocab)."""
    input_ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    last = torch.arange(-len(answer), 0, device=model.device)  # of a slice torch copies the weight
    output = model(input_ids=input_ids, use_cache=False, logits_to_keep=last)
    return output.logits[0].float()  # type: ignore[no-any-return]


def compare(pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    """Say how far scores are from those that they should be.

    Args:
        pairs: (found, expected), each (answer, vocab).
    """
    found, expected = (torch.cat(each) for each in zip(*pairs, strict=True))
    apart = (found - expected).abs().amax(-1) / expected.std(-1)  # (answer,)
    same = found.argmax(-1) == expected.argmax(-1)
    return Difference(apart.max().item(), len(same), int(same.sum()))


def check_streamed(model: Any, probes: Sequence[Probe], tolerance: float) -> str:
    """Prove that what was saved, streamed with a cache, says what the trained model would.

    A model of many layers in int8 or bfloat16 may turn the last bit of its input into more than
    the tolerance. Then it is measured how much, without a cache, and twice that is let pass; a
    position that is off by one moves scores by more.

    Args:
        model: what was trained.
        probes: made with it.
        tolerance: a share of the spread of a token's scores.

    Raises:
        TrainingError: the scores differ by more.
    """
    difference = compare([(each.streamed, each.trained) for each in probes])
    told = f"{difference} (tolerance {tolerance:.0%}: a cache sums in another order)"
    if difference.largest <= tolerance:
        return told
    with _moved_input(model):
        moved = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    noise = compare(moved).largest
    told = f"{difference} (tolerance {tolerance:.0%}, or {MOVED} times the {_percent(noise)} that "
    told += "rounding its input once more does to this model)"
    if difference.largest <= MOVED * noise:
        return told
    raise TrainingError(
        f"{told}. Chat would not answer as the trained model does; the key-value cache of this "
        "model, or what was saved, is at fault. Report this."
    )


@contextlib.contextmanager
def _moved_input(model: Any) -> Iterator[None]:
    """Move each number of the embedded input up or down by one rounding, for a while."""
    chance = torch.Generator().manual_seed(0)

    def move(_: Any, __: Any, embedded: Tensor) -> Tensor:
        sign = torch.randint(0, 2, embedded.shape, generator=chance).to(embedded) * 2 - 1
        return embedded * (1 + torch.finfo(embedded.dtype).eps * sign)

    hook = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


def check_merged(model: Any, probes: Sequence[Probe], tolerance: float) -> Proof:
    """Merge the adapter into the base, layer by layer, and score the probes again.

    Nothing but the merged model is left afterwards, so this is the last proof. Weights that are
    rounded to half precision lose a part of a small update; how much is measured beside what
    the adapter changes.

    Args:
        model: the trained peft model.
        probes: made with it before.
        tolerance: of the difference, as a share of what the adapter changes.
    """
    if not tuning.is_adapted(model):
        return Proof(MERGED, "not run", "the model itself was trained, and nothing is to merge")
    if not adapter.can_merge(model):
        return Proof(MERGED, "not run", "such an adapter, or such a base, cannot be merged")
    with model.disable_adapter():
        base = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    effect = compare(base).largest
    noise = compare([(each.streamed, each.trained) for each in probes]).largest
    if not effect > NOISE * noise:
        told = f"the adapter changes scores by {_percent(effect)} of their spread, and rounding by "
        return Proof(MERGED, "not run", f"{told}{_percent(noise)}, so there is nothing to compare")
    try:
        adapter.merge_in_place(model)
    except torch.OutOfMemoryError:
        return Proof(MERGED, "not run", "there is no memory for a second copy of one layer")
    scored = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    difference = compare(scored)
    told = f"{difference}, and the adapter changes them by {_percent(effect)} (tolerance "
    told += f"{tolerance:.0%} of that, or {NOISE} times the rounding of {_percent(noise)})"
    if difference.largest <= max(tolerance * effect, NOISE * noise):
        return Proof(MERGED, "passed", told)
    return Proof(
        MERGED,
        "failed",
        f"{told}. A part of the update is lost in the merged weights: keep the adapter beside "
        "its base, or merge into float32.",
    )


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
