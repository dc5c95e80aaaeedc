r"""A conversation -> token ids and labels, and generated ids -> messages.

Training and chat use the same object, so a prompt at inference is by construction what
stood before the answer in training.

    official   [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>
    labels        -     -     -     - -   -  -       -        ▁ \n ▁很 好 </s>
    prompt     [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|>

Three rules are easy to get wrong. The model writes the newline after `<|assistant|>` itself,
so it is learned. So is the token after an answer, `</s>` or the next role, or the model never
learns to stop. And strings are encoded where ChatGLM3 cuts them: "\n" and "很好" are two
strings in the official layout but one in the tutorial's, which gives other ids.

Source: ChatGLM3, finetune_demo/preprocess_utils.py and tokenization_chatglm.py; the reference
is spec sections 8 and 9.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from glmtune.chatglm.reply import parse_tool_call
from glmtune.conversation import ROLES, TOOLS_PROMPT, Conversation, Message
from glmtune.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.chatglm.tokenization_chatglm import ChatGLMTokenizer

IGNORE = -100  # torch's own `ignore_index`: a label that is not learned

Layout = Literal["official", "tutorial", "chatglm2", "plain"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


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


class Template(ABC):
    """How conversations of one model family look as ids.

    Attributes:
        stop_ids: generation ends when one of them is written.
        description: the family and the layout, for people.
    """

    stop_ids: tuple[int, ...]
    description: Mapping[str, str]

    @abstractmethod
    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Give the ids and labels of many conversations.

        Raises:
            TemplateError: a conversation cannot be rendered; says which and why.
        """

    @abstractmethod
    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Give the ids after which the model answers: what `encode` puts before that answer.

        Raises:
            TemplateError: the conversation cannot be rendered.
        """

    @abstractmethod
    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Read generated ids; they end at the first stop id, or where they end."""

    @abstractmethod
    def _fingerprinted(self) -> Mapping[str, Any]:
        """Give, as JSON, whatever must be equal for two templates to be one."""

    def encode(self, conversation: Conversation) -> Example:
        """Give the ids and labels of one conversation, as `encode_batch` does."""
        [example] = self.encode_batch([conversation])
        return example

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that change when the same conversation would give other ids or labels.

        They depend on the tokenizer, the layout and this code, but not on the machine.
        """
        facts = {**self.description, "stop_ids": self.stop_ids, **self._fingerprinted()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _until_stop(self, ids: Sequence[int]) -> list[int]:
        end = next((i for i, index in enumerate(ids) if index in self.stop_ids), len(ids))
        return list(ids[:end])

    def shorten_prompt(self, conversation: Conversation, max_tokens: int) -> Example | None:
        """Make a conversation fit by shortening what is before its last answer.

        Turns after the last learned answer go first, then the oldest exchanges (a user message
        and what follows it), then the end of the longest user or observation text of the
        last exchange. System messages stay. The answers that are left stay whole, and so do
        their ends.

        Args:
            conversation: of any length.
            max_tokens: how many ids the example may have.

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
        """Cut the ends of user and observation texts, the longest first, until all fits."""
        messages = list(conversation)
        texts = [
            index
            for index, message in enumerate(messages)
            if message.role in ("user", "observation") and not is_learned(message)
        ]
        for index in sorted(texts, key=lambda i: len(messages[i].content), reverse=True):
            whole = messages[index]

            def encode_cut(length: int, index: int = index, whole: Message = whole) -> Example:
                messages[index] = replace(whole, content=whole.content[:length])
                return self.encode(Conversation(tuple(messages)))

            fits, too_long = 1, len(whole.content)
            best = encode_cut(fits)
            if len(best.input_ids) > max_tokens:
                continue  # one character is left of this text; cut the next one too
            while too_long - fits > 1:
                middle = (fits + too_long) // 2
                example = encode_cut(middle)
                if len(example.input_ids) <= max_tokens:
                    fits, best = middle, example
                else:
                    too_long = middle
            return best
        return None


def is_learned(message: Message) -> bool:
    """Tell whether training learns a message: answers are, unless they say otherwise.

    System and user messages are never learned, as in the official data format.
    """
    if message.role in ("system", "user"):
        return False
    return message.role == "assistant" if message.is_learned is None else message.is_learned


def _drop_exchanges(conversation: Conversation) -> Iterator[Conversation]:
    """Yield ever shorter ends of a conversation that still have its last learned answer."""
    messages = list(conversation)
    while not is_learned(messages[-1]):
        messages.pop()
    start = next((i for i, message in enumerate(messages) if message.role != "system"), 0)
    users = [i for i in range(start + 1, len(messages)) if messages[i].role == "user"]
    for begin in [start, *users]:
        yield Conversation((*messages[:start], *messages[begin:]))


# ---- ChatGLM3 -------------------------------------------------------------------------------


# a stretch of a conversation, ids as they are or a string to be encoded on its own, and whether
# it is learned
Part = tuple[str | list[int], bool]


class ChatGLMTemplate(Template):
    """ChatGLM3's own format, without a detour through text.

    Layouts:

    - `official`: newline and content are two strings; every answer is learned.
    - `tutorial`: the last answer, with its newline, is one string and the only one learned;
      the turns before it are official, since that is how `model.chat` shows them to the model.
    - `chatglm2`: numbered rounds of 问 and 答 in one string, for ChatGLM2 and CodeGeeX2, which
      have no roles; the last answer is a string of its own, and the only one learned.
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
        self._start_ids = tokenizer.build_inputs_with_special_tokens([])
        self._end_ids = [tokenizer.get_command("<eos>")]
        self._role_ids = {role: [tokenizer.get_command(f"<|{role}|>")] for role in ROLES}
        self.stop_ids = tuple(self._end_ids)
        if layout in ("official", "tutorial"):
            self.stop_ids += (*self._role_ids["user"], *self._role_ids["observation"])
        self.description = {"family": "chatglm3", "layout": layout}

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Give the ids and labels of many conversations: all texts in one threaded call.

        Raises:
            TemplateError: a conversation cannot be rendered; says which and why.
        """
        parts_of = [self._parts(conversation) for conversation in conversations]
        ids_of = self._encode_texts(parts_of)
        return [_join(parts, ids_of) for parts in parts_of]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Give the ids up to `<|assistant|>`, which are those of `build_chat_input`.

        Raises:
            TemplateError: the conversation cannot be rendered.
        """
        if self._layout == "plain":
            parts = self._plain_parts([*conversation, Message("assistant", "")])[:-2]
        elif self._layout == "chatglm2":
            parts = self._round_parts(conversation.messages)
        else:
            parts = [*self._turns(conversation), (self._role_ids["assistant"], False)]
        return _join(parts, self._encode_texts([parts])).input_ids

    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Read generated ids: one message, or a remark and the tool call after it.

        A message begins with its metadata line, empty for an ordinary answer, whose content is
        stripped. Where a content was encoded on its own, the space in front of it is not its.
        """
        ids = self._until_stop(ids)
        if self._layout == "plain":
            return [Message("assistant", _decode(self._tokenizer, ids))]
        if self._layout == "chatglm2":
            return [Message("assistant", _decode(self._tokenizer, ids).strip())]
        messages = []
        for part in _split(ids, *self._role_ids["assistant"]):
            text = _decode(self._tokenizer, part)
            metadata, newline, content = text.partition("\n")
            if not newline:
                metadata, content = "", text
            metadata = metadata.strip()
            content = content.removeprefix(" ") if metadata else content.strip()
            messages.append(Message("assistant", content, metadata=metadata))
        return messages

    def _parts(self, conversation: Conversation) -> list[Part]:
        """Cut a conversation as its layout does."""
        if not conversation.messages:
            raise TemplateError("the conversation has no messages; it needs at least one.")
        if self._layout == "plain":
            return self._plain_parts(list(conversation))
        if self._layout == "tutorial":
            return self._tutorial_parts(conversation)
        if self._layout == "chatglm2":
            return self._chatglm2_parts(conversation)
        last = is_learned(conversation.messages[-1])
        return [*self._turns(conversation), (self._end_ids, last)]

    def _turns(self, messages: Sequence[Message] | Conversation) -> list[Part]:
        """Cut every turn in the official way."""
        parts: list[Part] = [(self._start_ids, False)]
        was_learned = False
        for index, message in enumerate(messages):
            role_ids = self._role_ids.get(message.role)
            if role_ids is None:
                raise TemplateError(
                    f"turn {index} is from {message.role!r}, expected one of {', '.join(ROLES)}."
                )
            learns = is_learned(message)
            parts += (
                (role_ids, was_learned),  # what ends the turn before
                (f"{message.metadata}\n", learns),
                (message.text, learns),
            )
            was_learned = learns
        return parts

    def _tutorial_parts(self, conversation: Conversation) -> list[Part]:
        *history, answer = conversation.messages
        if answer.role != "assistant":
            raise TemplateError(
                f"the last turn is from {answer.role!r}, but the {self._layout} layout learns the "
                "last turn and so needs an answer there. Drop the turns after the last answer, or "
                "use the official layout."
            )
        unlearned = [(piece, False) for piece, _ in self._turns(history)]
        text = f"{answer.metadata}\n{answer.content}"
        learns = is_learned(answer)
        return [
            *unlearned,
            (self._role_ids["assistant"], False),
            (text, learns),
            (self._end_ids, learns),
        ]

    def _chatglm2_parts(self, conversation: Conversation) -> list[Part]:
        """Cut as the fine-tuning code of ChatGLM2 does: the rounds, then the last answer."""
        *history, answer = conversation.messages
        if answer.role != "assistant" or answer.metadata:
            raise TemplateError(
                "the chatglm2 layout learns the last turn and so needs an answer there, got "
                f"{'a tool call' if answer.metadata else answer.role}. Drop the turns behind the "
                "last answer."
            )
        learns = is_learned(answer)
        return [*self._round_parts(history), (answer.content, learns), (self._end_ids, learns)]

    def _round_parts(self, messages: Sequence[Message]) -> list[Part]:
        """Write turns up to a question as numbered rounds: one string, as ChatGLM2 has it."""
        roles = [message.role for message in messages]
        expected = (["user", "assistant"] * (len(messages) // 2 + 1))[: len(messages)]
        if roles != expected or not len(messages) % 2 or any(m.metadata for m in messages):
            raise TemplateError(
                "ChatGLM2 knows questions and answers in turn, and neither system messages nor "
                f"tools; got {' '.join(roles)} before an answer. Put what the system message says "
                "into the first question."
            )
        rounds = [
            f"[Round {number}]\n\n问：{question.content}\n\n答：{answer.content}\n\n"
            for number, (question, answer) in enumerate(
                zip(messages[::2], messages[1::2], strict=False), start=1
            )
        ]
        last = f"[Round {len(rounds) + 1}]\n\n问：{messages[-1].content}\n\n答："
        return [(self._start_ids, False), ("".join(rounds) + last, False)]

    def _plain_parts(self, messages: Sequence[Message]) -> list[Part]:
        roles = [message.role for message in messages]
        if roles not in (["user", "assistant"], ["assistant"]):
            raise TemplateError(
                "the plain layout has one prompt from the user and one answer, got "
                f"{' '.join(roles)}. Use the official layout for chats."
            )
        answer = messages[-1]
        return [
            (self._start_ids, False),
            *((message.content, False) for message in messages[:-1]),
            (answer.content, is_learned(answer)),
            (self._end_ids, is_learned(answer)),
        ]

    def _encode_texts(self, parts_of: Sequence[Sequence[Part]]) -> dict[str, list[int]]:
        """Encode every different text of many conversations once."""
        texts = list(
            {piece: 0 for parts in parts_of for piece, _ in parts if not isinstance(piece, list)}
        )
        try:
            return dict(zip(texts, self._tokenizer.encode_texts(texts), strict=True))
        except ValueError as error:
            raise TemplateError(f"a message cannot be encoded: {error}") from error

    def _fingerprinted(self) -> Mapping[str, Any]:
        probes = {"plain": _PLAIN_PROBES, "chatglm2": _ROUND_PROBES}.get(self._layout, _PROBES)
        examples = self.encode_batch(probes)
        pieces = self._tokenizer.sp_model.serialized_model_proto()
        return {
            "pieces": hashlib.sha256(pieces).hexdigest(),
            "added": self._tokenizer.added_tokens_encoder,
            "roles": self._role_ids,
            "examples": [[example.input_ids, example.labels] for example in examples],
            "prompt": self.prompt_ids(Conversation(_PLAIN_PROBES[0].messages[:1])),
        }


def _join(parts: Sequence[Part], ids_of: Mapping[str, list[int]]) -> Example:
    """Put the ids of the parts one after the other, with their labels."""
    input_ids: list[int] = []
    labels: list[int] = []
    for piece, learns in parts:
        ids = piece if isinstance(piece, list) else ids_of[piece]
        input_ids += ids
        labels += ids if learns else [IGNORE] * len(ids)
    return Example(input_ids, labels)


def _split(ids: Sequence[int], separator: int) -> list[list[int]]:
    """Split a list as `str.split` splits a string."""
    parts: list[list[int]] = [[]]
    for index in ids:
        if index == separator:
            parts.append([])
        else:
            parts[-1].append(index)
    return parts


_TOOL = {"name": "weather", "description": "天气", "parameters": {"city": {"type": "string"}}}
_PLAIN_PROBES = (
    Conversation((Message("user", "你好 <|user|>\n12 😀"), Message("assistant", " 好的。\n\n```"))),
)
_ROUND_PROBES = (
    *_PLAIN_PROBES,
    Conversation((*_PLAIN_PROBES[0], Message("user", ""), Message("assistant", "3 [gMASK]sop"))),
)
_PROBES = (
    *_PLAIN_PROBES,
    Conversation(
        (
            Message("system", TOOLS_PROMPT, tools=[_TOOL]),
            Message("user", ""),
            Message("assistant", "Let me see.", is_learned=False),
            Message("assistant", "```python\ntool_call(city='北京')\n```", metadata="weather"),
            Message("observation", '{"celsius": 3}'),
            Message("assistant", "3 度 [gMASK]sop</s>"),
        )
    ),
)


# ---- other families -------------------------------------------------------------------------

# Some templates write today's date, and so the same conversation would have other ids tomorrow.
# This one stands in front of theirs and hides the function they ask; 26 Jul 2024 is what
# Llama's templates say when they cannot ask.
_DATE_PARTS = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24"} | {
    "%a": "Fri", "%A": "Friday", "%H": "12", "%M": "00", "%S": "00"
}  # fmt: skip
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{part}', '{value}')" for part, value in _DATE_PARTS.items())
    + " }}{%- endmacro %}{{ '' }}"
)


class ChatTemplate(Template):
    """Any tokenizer's own chat template, as far as it keeps the promises made above.

    What the template renders for the turns before an answer, with `add_generation_prompt`,
    must be the beginning of what it renders for the whole conversation; and a stop token must
    end the answer. Each conversation is checked for both. Text in a message that spells a
    control token is encoded as text.

    Args:
        tokenizer: with a chat template.

    Raises:
        TemplateError: the tokenizer has no chat template, or one that breaks the promises.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise TemplateError(
                f"the tokenizer of {tokenizer.name_or_path or type(tokenizer).__name__} has no "
                "chat template, so it is unknown how its conversations look. Use a chat model, "
                "or put a chat_template.jinja into the folder."
            )
        self._tokenizer = tokenizer
        self.description = {"family": "chat-template", "layout": type(tokenizer).__name__}
        end_id = self._find_end()
        self.stop_ids = tuple(dict.fromkeys((end_id, tokenizer.eos_token_id or end_id)))

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Give the ids and labels of many conversations.

        Raises:
            TemplateError: a conversation cannot be rendered; says which and why.
        """
        return [self._encode(conversation) for conversation in conversations]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Give the ids of the turns with the generation prompt behind them.

        Raises:
            TemplateError: the conversation cannot be rendered.
        """
        return self._render(*_to_openai(conversation.messages), add_generation_prompt=True)

    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Read generated ids as one message; its text is stripped."""
        text = _decode(self._tokenizer, self._until_stop(ids), skip_special_tokens=True)
        return [Message("assistant", text.strip())]

    def _encode(self, conversation: Conversation) -> Example:
        messages = conversation.messages
        ids = self._render(*_to_openai(messages))
        labels = [IGNORE] * len(ids)
        for first, behind in _answers(messages):
            start = self._find_start(messages, first, ids)
            end = self._find_stop(messages, behind, ids, start)
            if all(is_learned(message) for message in messages[first:behind]):
                labels[start:end] = ids[start:end]
        return Example(ids, labels)

    def _find_start(self, messages: Sequence[Message], first: int, ids: Sequence[int]) -> int:
        """Give where the answer at turn `first` begins."""
        if first == 0:
            raise TemplateError(
                "turn 0 is an answer, and this model's chat template needs a message before it."
            )
        prompt = self._render(*_to_openai(messages[:first]), add_generation_prompt=True)
        self._check_prefix(prompt, ids, f"the prompt of the answer at turn {first}")
        return len(prompt)

    def _find_stop(
        self, messages: Sequence[Message], behind: int, ids: Sequence[int], start: int
    ) -> int:
        """Give where the answer that ends before turn `behind` ends, with its stop token."""
        turns = ids
        if behind < len(messages):
            turns = self._render(*_to_openai(messages[:behind]))
            self._check_prefix(turns, ids, f"the conversation up to turn {behind - 1}")
        for position in range(start, len(turns)):
            if turns[position] in self.stop_ids:
                return position + 1
        raise TemplateError(
            f"the chat template ends the answer at turn {behind - 1} with none of the stop "
            f"tokens {self._tokenizer.convert_ids_to_tokens(list(self.stop_ids))}, so the model "
            "would never learn to stop."
        )

    def _check_prefix(self, prefix: Sequence[int], ids: Sequence[int], what: str) -> None:
        """Refuse a template that renders the same turns in two ways.

        Raises:
            TemplateError: says from where on they differ.
        """
        if list(ids[: len(prefix)]) == list(prefix):
            return
        same = next(
            (i for i, (a, b) in enumerate(zip(prefix, ids, strict=False)) if a != b),
            min(len(prefix), len(ids)),
        )
        alone, inside = (
            _decode(self._tokenizer, some[max(0, same - 4) : same + 12]) for some in (prefix, ids)
        )
        raise TemplateError(
            f"this tokenizer's chat template cannot be trained on: {what} is not the beginning "
            f"of the whole conversation. From token {same} on it is {alone!r}, but in the "
            f"whole {inside!r}. A template that rewrites earlier turns (dropping their "
            "reasoning, for one) shows the model something else in chat than in training; use "
            "one that does not, or rows with one answer each."
        )

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Render messages to ids by the tokenizer's template."""
        from jinja2 import TemplateError as JinjaError

        if not messages:
            raise TemplateError("the conversation has no messages; it needs at least one.")
        try:
            chat_template = self._tokenizer.get_chat_template(tools=tools)
            ids = self._tokenizer.apply_chat_template(
                messages,
                chat_template=_FIXED_DATE + chat_template,
                tools=tools,  # type: ignore[arg-type]  # list is invariant
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        except (JinjaError, ValueError, TypeError) as error:
            raise TemplateError(
                f"this tokenizer's chat template does not take the conversation: {error}"
            ) from error
        return list(ids)

    def _find_end(self) -> int:
        """Give the token that the template puts behind an answer.

        Raises:
            TemplateError: there is none.
        """
        messages, tools = _to_openai((Message("user", "a"), Message("assistant", "b")))
        prompt = self._render(messages[:1], tools, add_generation_prompt=True)
        whole = self._render(messages, tools)
        self._check_prefix(prompt, whole, "the prompt of a first answer")
        specials = {i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special}
        for index in whole[len(prompt) :]:
            if index in specials or index == self._tokenizer.eos_token_id:
                return index
        raise TemplateError(
            "this tokenizer's chat template puts no special token behind an answer "
            f"({self._tokenizer.decode(whole)!r}), so the model would never learn to stop."
        )

    def _fingerprinted(self) -> Mapping[str, Any]:
        rendered: list[Any] = []
        for probe in _PROBES:
            try:
                example = self.encode(probe)
            except TemplateError:  # a template without tools is still a template
                rendered.append(None)
            else:
                rendered.append([example.input_ids, example.labels])
        prompt = self.prompt_ids(Conversation(_PROBES[0].messages[:1]))
        vocabulary = json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        return {
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "chat_template": self._tokenizer.chat_template,
            "examples": rendered,
            "prompt": prompt,
        }


def _decode(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = False
) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)  # a list comes back only for a list of lists
    return text


def _answers(messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Yield the first turn of each answer and the turn behind it.

    A remark and the calls after it are one answer.
    """
    index = 0
    while index < len(messages):
        first = index
        index += 1
        if messages[first].role != "assistant":
            continue
        while index < len(messages) and _is_call(messages[index]):
            index += 1
        yield first, index


def _is_call(message: Message) -> bool:
    return message.role == "assistant" and message.metadata != ""


def _to_openai(
    messages: Sequence[Message],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Write messages and their tools as chat templates expect them.

    Raises:
        TemplateError: a tool call cannot be read.
    """
    result: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] | None = None
    num_calls = 0
    for index, message in enumerate(messages):
        if message.role == "system" and message.tools is not None:
            tools = [_wrap_tool(tool) for tool in message.tools] or None
            if message.content == TOOLS_PROMPT:
                continue  # ChatGLM's own words; a template announces tools in its own
        if message.role == "observation":
            answered = {"tool_call_id": _call_id(num_calls), "name": _last_call(messages[:index])}
            result.append({"role": "tool", "content": message.content, **answered})
        elif _is_call(message):
            num_calls += 1
            follows = index > 0 and messages[index - 1].role == "assistant"
            if not follows:
                result.append({"role": "assistant", "content": ""})
            call = _to_tool_call(index, message, num_calls)
            result[-1].setdefault("tool_calls", []).append(call)
        else:
            result.append({"role": message.role, "content": message.content})
    return result, tools


def _wrap_tool(tool: Any) -> dict[str, Any]:
    return tool if "function" in tool else {"type": "function", "function": tool}


def _call_id(number: int) -> str:
    return f"call{number:05d}"  # nine letters or digits, as Mistral's templates demand


def _last_call(messages: Sequence[Message]) -> str:
    return next((m.metadata for m in reversed(messages) if _is_call(m)), "")


def _to_tool_call(index: int, message: Message, number: int) -> dict[str, Any]:
    try:
        arguments = parse_tool_call(message.content)
    except ValueError as error:
        raise TemplateError(
            f"turn {index} calls {message.metadata!r} in a way that this model's chat template "
            f"cannot carry: {error}"
        ) from error
    function = {"name": message.metadata, "arguments": arguments}
    return {"type": "function", "id": _call_id(number), "function": function}


def template_for(tokenizer: PreTrainedTokenizerBase, layout: Layout = "official") -> Template:
    """Give the template of a tokenizer's family.

    Args:
        tokenizer: ChatGLM's, or any that has a chat template.
        layout: a layout of ChatGLM3; other families have their own, which is `official`.

    Raises:
        TemplateError: the family has no such layout, or no template that can be trained on.
    """
    from glmtune.chatglm.tokenization_chatglm import ChatGLMTokenizer

    if isinstance(tokenizer, ChatGLMTokenizer):
        if layout in ("official", "tutorial") and (name := _chatglm2_name(tokenizer)):
            raise TemplateError(
                f"this is {name}, which knows no roles: the {layout} layout is ChatGLM3's. Use "
                "layout: chatglm2 for dialogues, or plain for text and code."
            )
        return ChatGLMTemplate(tokenizer, layout)
    if layout != "official":
        raise TemplateError(
            f"the layout {layout!r} is ChatGLM's, but the tokenizer is a "
            f"{type(tokenizer).__name__}, which has its own chat template. Use layout: official."
        )
    return ChatTemplate(tokenizer)


def _chatglm2_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the name under which ChatGLM2 or CodeGeeX2 was published, "" where it is neither.

    Its files are ChatGLM3's, the tokenizer to the byte; only their names tell it.
    """
    folder = Path(tokenizer.name_or_path)
    names = [folder.name]
    for file, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a hub id, or no such file
            continue
        names.append(str(content.get(key, "")) if isinstance(content, dict) else "")
    return next((n for n in names if re.search(r"(chatglm|codegeex)2-", n.lower())), "")
