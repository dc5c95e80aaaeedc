"""Encode conversations in the formats of ChatGLM3 and ChatGLM2."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glmtune.conversation import Conversation, Message
from glmtune.errors import TemplateError
from glmtune.model.chatglm.chat_format import ChatIds, Part, chat_parts, split_reply
from glmtune.recipe.choices import LAYOUTS, Layout
from glmtune.template.base import IGNORE, Example, Template, decode, is_learned
from glmtune.template.probes import PLAIN_PROBES, PROBES, ROUND_PROBES

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer


class ChatGLMTemplate(Template):
    """ChatGLM's formats, which join ids and not text (`glmtune.model.chatglm.chat_format`).

    Layouts:

    - `official`: newline and content are two strings; every answer is learned.
    - `tutorial`: the last answer, with its newline, is one string, and the only one learned;
      the turns before it are official, as `model.chat` encodes them.
    - `chatglm2`: numbered rounds of 问 and 答 in one string, for ChatGLM2 and CodeGeeX2, which
      have no roles; the last answer is another string, and the only one learned.
    - `plain`: a prompt and an answer without roles, for base models.

    Args:
        tokenizer: ChatGLM's.
        layout: one of the four.

    Raises:
        TemplateError: there is no such layout.
    """

    def __init__(self, tokenizer: ChatGLMTokenizer, layout: Layout = "official") -> None:
        if layout not in LAYOUTS:
            raise TemplateError(f"got layout {layout!r}, expected one of {', '.join(LAYOUTS)}.")
        self._tokenizer = tokenizer
        self._layout = layout
        self._ids = ChatIds.of(tokenizer)
        has_roles = layout in ("official", "tutorial")
        self.stop_ids = tuple(self._ids.stop if has_roles else self._ids.end)
        self.description = {"family": "chatglm3", "layout": layout}

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Encode many conversations, with all texts in one threaded call.

        Raises:
            TemplateError: a conversation cannot be rendered; names it and the reason.
        """
        parts_of = [self._parts(conversation) for conversation in conversations]
        ids_of = self._encode_texts(parts_of)
        return [_join(parts, ids_of) for parts in parts_of]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Encode up to `<|assistant|>`, with the ids of `build_chat_input`.

        Raises:
            TemplateError: the conversation cannot be rendered.
        """
        if self._layout == "plain":
            parts = self._plain_parts([*conversation, Message("assistant", "")])[:-2]
        elif self._layout == "chatglm2":
            parts = self._round_parts(conversation.messages)
        else:
            parts = self._turns(conversation, self._ids.roles["assistant"])
        return _join(parts, self._encode_texts([parts])).input_ids

    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Parse generated ids: one message, or a remark and the tool call after it.

        A message begins with its metadata line, which is empty for an ordinary answer, whose
        content is stripped. The space in front of a content that was encoded alone is not part
        of it.
        """
        ids = self._until_stop(ids)
        if self._layout == "plain":
            return [Message("assistant", decode(self._tokenizer, ids))]
        if self._layout == "chatglm2":
            return [Message("assistant", decode(self._tokenizer, ids).strip())]
        messages = []
        for part in _split(ids, *self._ids.roles["assistant"]):
            metadata, content = split_reply(decode(self._tokenizer, part))
            metadata = metadata.strip()
            content = content.removeprefix(" ") if metadata else content.strip()
            messages.append(Message("assistant", content, metadata=metadata))
        return messages

    def _parts(self, conversation: Conversation) -> list[Part]:
        """Split a conversation into the parts of its layout."""
        if not conversation.messages:
            raise TemplateError("the conversation has no messages; it needs at least one.")
        if self._layout == "plain":
            return self._plain_parts(list(conversation))
        if self._layout == "tutorial":
            return self._tutorial_parts(conversation)
        if self._layout == "chatglm2":
            return self._chatglm2_parts(conversation)
        return self._turns(conversation, self._ids.end)

    def _turns(self, messages: Iterable[Message], closing: list[int]) -> list[Part]:
        return chat_parts(messages, self._ids, closing, is_learned)

    def _tutorial_parts(self, conversation: Conversation) -> list[Part]:
        *history, answer = conversation.messages
        if answer.role != "assistant":
            raise TemplateError(
                f"the last turn is from {answer.role!r}, but the {self._layout} layout learns the "
                "last turn and so needs an answer there. Drop the turns after the last answer, or "
                "use the official layout."
            )
        prompt = self._turns(history, self._ids.roles["assistant"])
        text = f"{answer.metadata}\n{answer.content}"
        learns = is_learned(answer)
        return [
            *((piece, False) for piece, _ in prompt),
            (text, learns),
            (self._ids.end, learns),
        ]

    def _chatglm2_parts(self, conversation: Conversation) -> list[Part]:
        """Split as the fine-tuning code of ChatGLM2 does: the rounds, then the last answer."""
        *history, answer = conversation.messages
        if answer.role != "assistant" or answer.metadata:
            raise TemplateError(
                "the chatglm2 layout learns the last turn and so needs an answer there, got "
                f"{'a tool call' if answer.metadata else answer.role}. Drop the turns after the "
                "last answer."
            )
        learns = is_learned(answer)
        return [*self._round_parts(history), (answer.content, learns), (self._ids.end, learns)]

    def _round_parts(self, messages: Sequence[Message]) -> list[Part]:
        """Write the turns up to a question as numbered rounds in one string."""
        roles = [message.role for message in messages]
        expected = (["user", "assistant"] * (len(messages) // 2 + 1))[: len(messages)]
        if roles != expected or not len(messages) % 2 or any(m.metadata for m in messages):
            raise TemplateError(
                "ChatGLM2 has alternating questions and answers, and neither system messages nor "
                f"tools; got {' '.join(roles)} before an answer. Move the text of the system "
                "message into the first question."
            )
        rounds = [
            f"[Round {number}]\n\n问：{question.content}\n\n答：{answer.content}\n\n"
            for number, (question, answer) in enumerate(
                zip(messages[::2], messages[1::2], strict=False), start=1
            )
        ]
        last = f"[Round {len(rounds) + 1}]\n\n问：{messages[-1].content}\n\n答："
        return [(self._ids.start, False), ("".join(rounds) + last, False)]

    def _plain_parts(self, messages: Sequence[Message]) -> list[Part]:
        roles = [message.role for message in messages]
        if roles not in (["user", "assistant"], ["assistant"]):
            raise TemplateError(
                "the plain layout has one prompt from the user and one answer, got "
                f"{' '.join(roles)}. Use the official layout for chats."
            )
        answer = messages[-1]
        return [
            (self._ids.start, False),
            *((message.content, False) for message in messages[:-1]),
            (answer.content, is_learned(answer)),
            (self._ids.end, is_learned(answer)),
        ]

    def _encode_texts(self, parts_of: Sequence[Sequence[Part]]) -> dict[str, list[int]]:
        """Encode the distinct texts of many conversations, each once."""
        texts = list(
            {piece: 0 for parts in parts_of for piece, _ in parts if not isinstance(piece, list)}
        )
        try:
            return dict(zip(texts, self._tokenizer.encode_texts(texts), strict=True))
        except ValueError as error:
            raise TemplateError(f"a message cannot be encoded: {error}") from error

    def _fingerprinted(self) -> Mapping[str, Any]:
        probes = {"plain": PLAIN_PROBES, "chatglm2": ROUND_PROBES}.get(self._layout, PROBES)
        examples = self.encode_batch(probes)
        pieces = self._tokenizer.sp_model.serialized_model_proto()
        return {
            "pieces": hashlib.sha256(pieces).hexdigest(),
            "added": self._tokenizer.added_tokens_encoder,
            "roles": self._ids.roles,
            "examples": [[example.input_ids, example.labels] for example in examples],
            "prompt": self.prompt_ids(Conversation(PLAIN_PROBES[0].messages[:1])),
        }


def _join(parts: Sequence[Part], ids_of: Mapping[str, list[int]]) -> Example:
    """Concatenate the ids of the parts, and make their labels."""
    input_ids: list[int] = []
    labels: list[int] = []
    has_weights = False
    for piece, learns in parts:
        ids = piece if isinstance(piece, list) else ids_of[piece]
        input_ids += ids
        if learns:
            labels += ids
            has_weights = has_weights or learns is not True
        else:
            labels += [IGNORE] * len(ids)
    if has_weights:
        return Example(input_ids, labels, weights=_weights(parts, ids_of))
    return Example(input_ids, labels)


def _weights(parts: Sequence[Part], ids_of: Mapping[str, list[int]]) -> list[float]:
    """Return the weight of each id."""
    lengths = [len(piece if isinstance(piece, list) else ids_of[piece]) for piece, _ in parts]
    return [
        float(weight)
        for (_, weight), length in zip(parts, lengths, strict=True)
        for _ in range(length)
    ]


def _split(ids: Sequence[int], separator: int) -> list[list[int]]:
    """Split a list as `str.split` splits a string."""
    parts: list[list[int]] = [[]]
    for index in ids:
        if index == separator:
            parts.append([])
        else:
            parts[-1].append(index)
    return parts
