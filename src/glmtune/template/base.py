r"""Encode conversations as token ids and labels, and parse generated ids into messages.

Training and chat use the same object, so a prompt at inference is by construction what
preceded the answer in training.

    official   [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>
    labels        -     -     -     - -   -  -       -        ▁ \n ▁很 好 </s>
    prompt     [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|>

Three rules are easy to get wrong. The model writes the newline after `<|assistant|>` itself,
so it is learned. So is the token after an answer, `</s>` or the next role; otherwise the model
never learns to stop. And strings are split where ChatGLM3 splits them: "\n" and "很好" are two
strings in the official layout but one in the tutorial's, which gives other ids.

Source: ChatGLM3, finetune_demo/preprocess_utils.py and tokenization_chatglm.py; the reference
is spec sections 8 and 9.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from glmtune.conversation import Conversation, Message
from glmtune.files import sha256_of_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORE = -100  # the `ignore_index` of torch: a label that is not learned


@dataclass(frozen=True, slots=True)
class Example:
    """The ids and labels of one conversation.

    Attributes:
        input_ids: the complete conversation.
        labels: as long as `input_ids` and not shifted: the id where it is learned, else
            `IGNORE`.
        is_good: what a label says of the answer, in rows for KTO; None without a label.
        weights: of the labels in the loss, as many; None where all are 1.
        prompt_length: the ids before the first answer, where the prompt is learned too.
    """

    input_ids: list[int]
    labels: list[int]
    is_good: bool | None = None
    weights: list[float] | None = None
    prompt_length: int | None = None

    def cut(self, max_tokens: int) -> Example:
        """Cut off everything after so many ids."""
        weights = None if self.weights is None else self.weights[:max_tokens]
        return replace(
            self,
            input_ids=self.input_ids[:max_tokens],
            labels=self.labels[:max_tokens],
            weights=weights,
        )


class Template(ABC):
    """The chat format of one model family, as ids.

    Attributes:
        stop_ids: ids that end a generation.
        description: the family and the layout, for people.
    """

    stop_ids: tuple[int, ...]
    description: Mapping[str, str]

    def reads_thoughts(self) -> bool:
        """Whether it writes the `reasoning` of a message."""
        return False

    @abstractmethod
    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Encode many conversations.

        Raises:
            TemplateError: a conversation cannot be rendered; names it and the reason.
        """

    @abstractmethod
    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Encode a prompt: the ids that `encode` puts before the answer.

        Raises:
            TemplateError: the conversation cannot be rendered.
        """

    @abstractmethod
    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Parse generated ids up to the first stop id, if there is one."""

    def parse_partial(self, ids: Sequence[int]) -> list[Message]:
        """Parse the beginning of an answer, to show it while it is written.

        The text of these messages is a beginning of the text of the complete answer.
        """
        return self.parse(ids)

    @abstractmethod
    def _fingerprinted(self) -> Mapping[str, Any]:
        """Return, as JSON, everything that two equivalent templates have in common."""

    def encode(self, conversation: Conversation) -> Example:
        """Encode one conversation, as `encode_batch` does."""
        [example] = self.encode_batch([conversation])
        return example

    @cached_property
    def fingerprint(self) -> str:
        """A hash, 64 hex digits, that changes when a conversation would get other ids or labels.

        It depends on the tokenizer, the layout and this code, but not on the machine.
        """
        facts = {**self.description, "stop_ids": self.stop_ids, **self._fingerprinted()}
        return sha256_of_text(json.dumps(facts, sort_keys=True))

    def _until_stop(self, ids: Sequence[int]) -> list[int]:
        end = next((i for i, token_id in enumerate(ids) if token_id in self.stop_ids), len(ids))
        return list(ids[:end])

    def shorten_prompt(self, conversation: Conversation, max_tokens: int) -> Example | None:
        """Make a conversation fit by shortening its turns before the last learned answer.

        Turns after that answer are dropped first, then the oldest exchanges (a user message and
        the turns after it), then the end of the longest user or observation text of the last
        exchange. System messages are kept. The remaining answers are kept in full, with the
        token that ends them.

        Args:
            conversation: of any length.
            max_tokens: the most ids that the example may have.

        Returns:
            The example of the shortened conversation, or None when the answer does not fit or
            nothing in the conversation is learned.
        """
        example = self.encode(conversation)
        if all(label == IGNORE for label in example.labels):
            return None
        if len(example.input_ids) <= max_tokens:
            return example
        shorter = conversation
        for shorter in _drop_exchanges(conversation):
            example = self.encode(shorter)
            if len(example.input_ids) <= max_tokens:
                return example
        return self._cut_texts(shorter, max_tokens)

    def _cut_texts(self, conversation: Conversation, max_tokens: int) -> Example | None:
        """Truncate user and observation texts, the longest first, until the example fits."""
        messages = list(conversation)
        texts = [
            index
            for index, message in enumerate(messages)
            if message.role in ("user", "observation") and not is_learned(message)
        ]
        for index in sorted(texts, key=lambda i: len(messages[i].content), reverse=True):
            full = messages[index]

            def encode_cut(length: int, index: int = index, full: Message = full) -> Example:
                messages[index] = replace(full, content=full.content[:length])
                return self.encode(Conversation(tuple(messages)))

            fits, too_long = 1, len(full.content)
            best = encode_cut(fits)
            if len(best.input_ids) > max_tokens:
                continue  # one character of this text remains; truncate the next one too
            while too_long - fits > 1:
                middle = (fits + too_long) // 2
                example = encode_cut(middle)
                if len(example.input_ids) <= max_tokens:
                    fits, best = middle, example
                else:
                    too_long = middle
            return best
        return None


def is_learned(message: Message) -> bool | float:
    """Whether training learns a message, or its weight: answers, unless `is_learned` differs.

    System and user messages are never learned, as in the official data format.
    """
    if message.role in ("system", "user"):
        return False
    return message.role == "assistant" if message.is_learned is None else message.is_learned


def _drop_exchanges(conversation: Conversation) -> Iterator[Conversation]:
    """Yield shorter and shorter conversations that keep the last learned answer."""
    messages = list(conversation)
    while not is_learned(messages[-1]):
        messages.pop()
    start = next((i for i, message in enumerate(messages) if message.role != "system"), 0)
    users = [i for i in range(start + 1, len(messages)) if messages[i].role == "user"]
    for begin in [start, *users]:
        yield Conversation((*messages[:start], *messages[begin:]))


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = False
) -> str:
    """Decode ids as one text."""
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)  # a list comes back only for a list of lists
    return text
