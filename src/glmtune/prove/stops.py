"""Proof that answers end by themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.prove.answers import Answer, Prompt, answer_all
from glmtune.prove.proof import STOPS, Proof
from glmtune.template.base import Template


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
