r"""ChatGLM3's chat format: which ids and strings a conversation is made of.

    [gMASK] sop <|user|> "\n" "你好" <|assistant|> "\n" "很好" </s>

A turn is the id of its role, its metadata line as one string, and its content as another; each
string is encoded alone, since where a string is cut changes its ids. The tokenizer renders chats
from these parts and `glmtune.template` renders training examples, so both have the same ids.

A model writes what follows `<|assistant|>`, and with it the token after an answer: `</s>`, or the
role of the next turn.

Source: THUDM/chatglm3-6b, tokenization_chatglm.py; the reference is spec section 8.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.conversation import ROLES, Message
from glmtune.errors import TemplateError

SPECIAL_TOKENS = (  # their ids follow those of the pieces, in this order
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
PREFIX_TOKENS = ("[gMASK]", "sop")  # in front of every sequence

Part = tuple[str | list[int], bool | float]
"""Ids, or a string to be encoded alone, and whether the model writes them, or their weight."""


@dataclass(frozen=True, slots=True)
class ChatIds:
    """The special ids of the chat format.

    Attributes:
        start: the ids in front of every sequence.
        end: the id that ends a text.
        roles: by role the id that begins its turn.
    """

    start: list[int]
    end: list[int]
    roles: Mapping[str, list[int]]

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatIds":
        """Look up the ids in a tokenizer of ChatGLM3."""
        return cls(
            start=[tokenizer.get_command(token) for token in PREFIX_TOKENS],
            end=[tokenizer.get_command("<eos>")],
            roles={role: [tokenizer.get_command(f"<|{role}|>")] for role in ROLES},
        )

    @property
    def stop(self) -> list[int]:
        """The ids that may follow an answer: the end, and the two roles that speak next."""
        return [*self.end, *self.roles["user"], *self.roles["observation"]]


def chat_parts(
    messages: Iterable[Message],
    ids: ChatIds,
    closing: list[int],
    is_written: Callable[[Message], bool | float],
) -> list[Part]:
    """Cut a conversation into the parts that are encoded alone.

    Args:
        messages: the turns.
        ids: of the tokenizer.
        closing: what follows the last turn: the end, or the role of the assistant as a prompt.
        is_written: whether the model writes a message, or its weight in training.

    Raises:
        TemplateError: a role is unknown; names the turn.
    """
    parts: list[Part] = [(ids.start, False)]
    was_written: bool | float = False
    for index, message in enumerate(messages):
        role_ids = ids.roles.get(message.role)
        if role_ids is None:
            raise TemplateError(
                f"turn {index} is from {message.role!r}, expected one of {', '.join(ROLES)}."
            )
        writes = is_written(message)
        line, content = message_strings(message.metadata, message.text)
        parts += ((role_ids, was_written), (line, writes), (content, writes))
        was_written = writes
    parts.append((closing, was_written))
    return parts


def message_strings(metadata: str, text: str) -> tuple[str, str]:
    """Return the two strings of a message: the metadata with its newline, and the content."""
    return f"{metadata}\n", text


def chat_text(messages: Iterable[Message], add_generation_prompt: bool) -> str:
    """Write a conversation as text, for people, with a space in front of each content."""
    parts = [*PREFIX_TOKENS]
    for message in messages:
        content = f" {message.text}" if message.text else ""
        parts.append(f"<|{message.role}|>{message.metadata}\n{content}")
    if add_generation_prompt:
        parts.append("<|assistant|>")
    return "".join(parts)


def split_reply(text: str) -> tuple[str, str]:
    """Split a decoded message into its metadata line and its content.

    A reply without a newline is content, as a model that was cut off early writes it.
    """
    metadata, newline, content = text.partition("\n")
    return (metadata, content) if newline else ("", text)
