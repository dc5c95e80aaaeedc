"""Proof that answers end with a stop token, rather than at the limit of their length.

A model that never learned its stop token answers well and then continues with another turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.prove.answers import Answer
from glmtune.prove.proof import STOPS, Proof


@dataclass(frozen=True, slots=True)
class StopRate:
    """How many prompts got an answer that ended by itself.

    Attributes:
        num_prompts: that were answered.
        endless: indices of those whose answer reached the limit.
        max_new_tokens: the limit.
    """

    num_prompts: int
    endless: tuple[int, ...]
    max_new_tokens: int

    @property
    def share(self) -> float:
        """The share that ended, 0 to 1."""
        return 1 - len(self.endless) / self.num_prompts if self.num_prompts else 0.0

    def proof(self, min_share: float, what: str = "held-out") -> Proof:
        """Return the verdict: at least `min_share` must end; `what` names the kind of prompts."""
        if not self.num_prompts:
            return Proof(STOPS, "not run", "There are no held-out rows to ask.")
        measured = (
            f"{self.num_prompts - len(self.endless)} of {self.num_prompts} {what} prompts got "
            f"an answer that ended within {self.max_new_tokens} tokens"
        )
        if self.share >= min_share:
            return Proof(STOPS, "passed", f"{measured}.")
        return Proof(
            STOPS,
            "failed",
            f"{measured}, expected {min_share:.0%}. Check with `glmtune inspect` whether the rows' "
            "answers end with a learned stop token, and train longer if they do.",
        )


def count_ended(answers: Sequence[Answer], max_new_tokens: int) -> StopRate:
    """Count the answers that ended by themselves.

    Args:
        answers: to any prompts.
        max_new_tokens: the limit that they had.
    """
    endless = tuple(index for index, answer in enumerate(answers) if not answer.has_ended)
    return StopRate(len(answers), endless, max_new_tokens)
