"""A conversation -> token ids and labels, and generated ids -> a message.

Training and chat use the same object, so a prompt at inference is by construction what
stood before the answer in training.
"""

from dataclasses import dataclass

IGNORE = -100  # torch's own `ignore_index`: a label that is not learned


@dataclass(frozen=True, slots=True)
class Example:
    """What is learned from one conversation.

    Attributes:
        input_ids: the whole conversation.
        labels: as long as `input_ids` and not shifted: the id where it is learned, else
            `IGNORE`.
    """

    input_ids: list[int]
    labels: list[int]
