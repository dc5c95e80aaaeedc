"""Fit examples to `max_length`: keep, cut, shorten or leave out.

max_length = 6        drop             truncate_prompt    tutorial
P P P P A A A         left out         P P P A A A        P P P P A A
"""

from collections.abc import Sequence
from enum import StrEnum

from glmtune.conversation import Conversation
from glmtune.errors import TemplateError
from glmtune.recipe.choices import Overlong
from glmtune.template.base import IGNORE, Example, Template


class Fate(StrEnum):
    """What becomes of a row by its length; the values are the counts of `EncodeReport`."""

    UNCUT = "uncut"
    CUT = "num_cut"
    SHORTENED = "num_shortened"
    OVERLONG = "num_overlong"
    WITHOUT_LABELS = "num_without_labels"


def describe_fate(fate: Fate, num_tokens: int, max_length: int) -> str:
    """Describe what becomes of a row, for people; "" when it is learned in full.

    Args:
        fate: from `fit`.
        num_tokens: of the row before anything was done about its length.
        max_length: the limit that it was fitted to.
    """
    limit = f"data.max_length {max_length:,}"
    match fate:
        case Fate.UNCUT:
            return ""
        case Fate.CUT:
            return f"cut off after token {max_length:,} of {num_tokens:,}"
        case Fate.SHORTENED:
            return f"prompt shortened: {num_tokens:,} tokens are more than {limit}"
        case Fate.OVERLONG:
            return f"left out: {num_tokens:,} tokens are more than {limit}"
        case Fate.WITHOUT_LABELS if num_tokens > max_length:
            return f"left out: none of its first {max_length:,} of {num_tokens:,} tokens is learned"
    return "left out: nothing in it is learned"


def fit(
    example: Example,
    conversation: Conversation,
    template: Template,
    max_length: int,
    overlong: Overlong,
) -> tuple[Example | None, Fate]:
    """Fit an example to the limit; the first result is None if the example is left out.

    Args:
        example: the encoded conversation, uncut.
        conversation: what it was encoded from, to be shortened and encoded again.
        template: that encoded it.
        max_length: in tokens.
        overlong: what becomes of a longer example.

    Raises:
        TemplateError: the conversation cannot be shortened by this template.
    """
    fate, fitted = Fate.UNCUT, example
    if len(example.input_ids) > max_length:
        if overlong == "tutorial":
            fate = Fate.CUT
            fitted = example.cut(max_length)
        else:
            shorter = (
                template.shorten_prompt(conversation, max_length)
                if overlong == "truncate_prompt"
                else None
            )
            if shorter is None:
                return None, Fate.OVERLONG
            fate, fitted = Fate.SHORTENED, shorter
    if fitted.labels.count(IGNORE) == len(fitted.labels):
        return None, Fate.WITHOUT_LABELS
    return fitted, fate


def encode_each(
    template: Template, conversations: Sequence[Conversation]
) -> Sequence[Example | TemplateError]:
    """Encode conversations together; if that fails, one by one to find those at fault."""
    try:
        return template.encode_batch(conversations)
    except TemplateError:
        return [_encode(template, conversation) for conversation in conversations]


def _encode(template: Template, conversation: Conversation) -> Example | TemplateError:
    try:
        return template.encode(conversation)
    except TemplateError as error:
        return error


def example_of(encoding: Example | TemplateError) -> Example:
    """Return the example from `encode_each`.

    Raises:
        TemplateError: the conversation could not be encoded.
    """
    if isinstance(encoding, TemplateError):
        raise encoding
    return encoding
