r"""Learn prompts too, by `data.train_on_prompt`: all ids are labels, but for excluded answers.

    official       [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>
    labels            -     -     -     - -   -  -       -        ▁ \n ▁很 好 </s>
    with prompts      -    sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>

The first id is predicted by nothing. The example remembers where its answer begins, since proofs
and reports cut their prompts there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glmtune.conversation import Conversation, Message
from glmtune.template.base import IGNORE, Example, Template, is_learned


class LearnedPrompt(Template):
    """A template whose examples learn their prompts too.

    Args:
        template: makes the ids, and the labels of answers.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self.stop_ids, self.description = template.stop_ids, template.description

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Encode many conversations.

        Raises:
            TemplateError: a conversation cannot be rendered.
        """
        examples = self._template.encode_batch(conversations)
        return [self._with_prompt(*each) for each in zip(conversations, examples, strict=True)]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Encode a prompt, as the other template does.

        Raises:
            TemplateError: the conversation cannot be rendered.
        """
        return self._template.prompt_ids(conversation)

    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Parse generated ids, as the other template does."""
        return self._template.parse(ids)

    def _fingerprinted(self) -> Mapping[str, Any]:
        return self._template._fingerprinted()

    def _with_prompt(self, conversation: Conversation, example: Example) -> Example:
        start = next((i for i, label in enumerate(example.labels) if label != IGNORE), None)
        if start is None:
            return example  # there is nothing to answer, so it is left out as it is otherwise
        labels = [IGNORE, *example.input_ids[1:]]
        for position in self._excluded(conversation):
            labels[position] = IGNORE
        weights = example.weights and [
            1.0 if label == IGNORE else weight
            for label, weight in zip(example.labels, example.weights, strict=True)
        ]
        return replace(example, labels=labels, weights=weights, prompt_length=start)

    def _excluded(self, conversation: Conversation) -> list[int]:
        """Find the positions of answers that the row itself leaves out."""
        left_out = [
            message.role == "assistant" and not is_learned(message) for message in conversation
        ]
        if not any(left_out):
            return []
        flipped = tuple(
            replace(message, is_learned=is_out)
            for message, is_out in zip(conversation, left_out, strict=True)
        )
        labels = self._template.encode(Conversation(flipped)).labels
        return [position for position, label in enumerate(labels) if label != IGNORE]
