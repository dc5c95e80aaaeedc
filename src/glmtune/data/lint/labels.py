"""The labels of rows for KTO: of both kinds, in balance, and without contradiction.

The paper advises weights for which

    desirable_weight * good rows / (undesirable_weight * bad rows)     is from 1 to 4/3

Source: Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, equation 8.
"""

from glmtune.conversation import Conversation
from glmtune.data.lint.findings import Fault
from glmtune.recipe.sections import PreferenceSection

LEAST, MOST = 1.0, 4 / 3
TOLERANCE = 2.0  # times outside of that before anything is said


class Labels:
    """Counts the labels of rows, and finds answers that have both.

    Args:
        section: the weights.
    """

    def __init__(self, section: PreferenceSection) -> None:
        self._section = section
        self._counts = {True: 0, False: 0}
        self._seen: dict[int, tuple[bool, str]] = {}  # by the hash of a conversation

    def add(
        self, conversation: Conversation, place: str, *, is_learned: bool
    ) -> tuple[Fault, str] | None:
        """Count a row; return a fault and the other row if that has the other label.

        Args:
            conversation: with its label.
            place: of the row.
        is_learned: whether it counts, since it is not held out.
        """
        is_good = conversation.is_good is True
        self._counts[is_good] += is_learned
        key = hash(tuple((m.role, m.metadata, m.content) for m in conversation))
        before, other = self._seen.setdefault(key, (is_good, place))
        if before == is_good:
            return None
        names = ("good", "bad") if is_good else ("bad", "good")
        message = f"the answer is labeled {names[0]} here, and the same one {names[1]} there"
        return Fault("warning", message, conversation.messages[-1].content[:80]), other

    def balance(self) -> Fault | None:
        """Say that labels are of one kind, or that the weights do not balance them."""
        good, bad = self._counts[True], self._counts[False]
        if not good + bad:
            return None
        if not (good and bad):
            which = "good" if good else "bad"
            message = (
                f"every answer is labeled {which}, so nothing tells good answers from bad ones. "
                "Is data.columns right? With good answers alone preference.stage=sft learns more"
            )
            return Fault("warning", message, "")
        section = self._section
        ratio = section.desirable_weight * good / (section.undesirable_weight * bad)
        if LEAST / TOLERANCE <= ratio <= MOST * TOLERANCE:
            return None
        key, low, high = (
            ("undesirable_weight", ratio / MOST, ratio / LEAST)
            if ratio > MOST
            else ("desirable_weight", LEAST / ratio, MOST / ratio)
        )
        times = getattr(section, key)
        message = (
            f"{good:,} answers are labeled good and {bad:,} bad, so the weighted ratio is "
            f"{ratio:.3g}, and from 1 to 1.33 is advised: set preference.{key} to "
            f"{low * times:.3g} or up to {high * times:.3g}"
        )
        return Fault("warning", message, "")
