r"""The chat templates of GLM-4 and later, in which the role of the next turn ends an answer.

    glm-4-9b-chat-hf   [gMASK] <sop> <|user|> \n你好 <|assistant|> \n很好 <|user|>
    labels                -      -      -       -         -         \n很好 <|user|>
    prompt             [gMASK] <sop> <|user|> \n你好 <|assistant|>

The text is written by the template of the checkpoint. Two things are as in ChatGLM3: after the
last answer of a row comes the role that would speak next, `<|observation|>` after a call and
`<|user|>` after anything else, and it is learned; and the model may write several messages, with
`<|assistant|>` between them.

Which of the published templates it is, is found by what it does with a call:

    metadata    <|assistant|>get_weather\n{"city": "北京"}           GLM-4-9B, GLM-4-0414, GLM-Z1
    tool_calls  <tool_call>get_weather\n<arg_key>city</arg_key>\n...  GLM-4.5 and later

GLM-Z1 writes `<think>` in the prompt, and shows earlier answers without their thoughts. So only the
last answer of a row can be learned: after the prompt comes what the model writes.

Source: chat_template of zai-org/glm-4-9b-chat-hf, GLM-4-9B-0414, GLM-Z1-9B-0414 and GLM-4.5-Air;
the ends of answers are those of finetune_demo/finetune.py of GLM-4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.errors import TemplateError
from glmtune.template.base import IGNORE, Example, decode, is_learned
from glmtune.template.chat_template import (
    SECONDS_TO_RENDER,
    ChatTemplate,
    is_call,
    render,
    to_openai,
    wrap_tools,
)
from glmtune.template.glm_replies import (
    END_THINK,
    MARKS,
    THINK,
    read_metadata_reply,
    read_tool_calls,
    split_at,
    split_thought,
)
from glmtune.template.time_limit import time_limit
from glmtune.tool_calls import parse_tool_call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT, OBSERVATION = "<|user|>", "<|assistant|>", "<|observation|>"
_PROBE = "probe"  # the name of a tool, which the templates do not contain
_ASKED = {"role": "user", "content": "a"}
_DEFINED = [{"type": "function", "function": {"name": _PROBE}}]
_CALLED = {"type": "function", "id": "1", "function": {"name": _PROBE, "arguments": {}}}
# What follows the `<think>` of a prompt; control tokens in the two texts are encoded as text.
_AFTER_THINK = "{{ messages[0].thought }}</think>{{ messages[0].content }}"


class GlmTemplate(ChatTemplate):
    """The chat template of a GLM-4, GLM-Z1 or GLM-4.5 checkpoint.

    Args:
        tokenizer: one that `GlmTemplate.fits`.

    Raises:
        TemplateError: its chat template breaks the rules of `ChatTemplate`.
    """

    @staticmethod
    def fits(tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a tokenizer has the roles of GLM, and its template puts no end after an answer.

        Raises:
            TemplateError: the chat template does not accept a question and an answer.
        """
        known = tokenizer.added_tokens_encoder
        if not tokenizer.chat_template or not {USER, ASSISTANT, OBSERVATION} <= known.keys():
            return False
        with time_limit(SECONDS_TO_RENDER):
            ids = render(tokenizer, [_ASKED, {"role": "assistant", "content": _PROBE}], None)
        after = decode(tokenizer, ids).rpartition(_PROBE)[2]
        return not any(token in after for token in known)

    def reads_thoughts(self) -> bool:
        """Whether the chat template writes `reasoning_content`, or begins answers by a thought."""
        return self._has_thoughts or bool(self._opening)

    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Parse generated ids: messages, or a remark and the calls after it.

        GLM-4.5 writes the values of a call without types: one that is JSON is read as JSON.
        """
        return self._parse(ids, is_partial=False)

    def parse_partial(self, ids: Sequence[int]) -> list[Message]:
        """Parse the beginning of an answer, whose text is one of the complete answer."""
        return self._parse(ids, is_partial=not any(index in self.stop_ids for index in ids))

    def _find_stops(self) -> tuple[int, ...]:
        """Find the roles that end an answer, and how the template writes tools and calls."""
        known = self._tokenizer.added_tokens_encoder
        self._role_ids: dict[str, int] = {
            role: known[role] for role in (USER, ASSISTANT, OBSERVATION)
        }
        self._marks = {known[mark]: mark for mark in MARKS if mark in known}
        system = {"role": "system", "content": "", "tools": _DEFINED}
        with time_limit(SECONDS_TO_RENDER):
            self._opening = self._find_opening()
            self._has_metadata = self._writes({"metadata": _PROBE})
            self._has_calls = self._has_metadata or self._writes({"tool_calls": [_CALLED]})
            self._has_thoughts = self._writes({"reasoning_content": _PROBE})
            self._has_tools = self._is_shown([_ASKED], _DEFINED)
            self._has_tools_in_messages = self._is_shown([system, _ASKED])
        stops = (self._role_ids[USER], self._role_ids[OBSERVATION], self._tokenizer.eos_token_id)
        return tuple(dict.fromkeys(index for index in stops if index is not None))

    def _writes(self, fields: Mapping[str, Any]) -> bool:
        """Whether the template writes what further fields of an answer hold."""
        answer = {"role": "assistant", "content": "{}", **fields}
        return self._is_shown([_ASKED, answer, {"role": "observation", "content": "b"}])

    def _is_shown(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> bool:
        return _PROBE in decode(self._tokenizer, render(self._tokenizer, messages, tools))

    # ---- writing ---------------------------------------------------------------------------

    def _encode(self, conversation: Conversation, check_all: bool = False) -> Example:
        if self._opening:
            return self._encode_after_thought(conversation)
        return super()._encode(conversation, check_all)

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> list[int]:
        """Render messages, with the role that ends the last one if it is an answer."""
        ids = super()._render(messages, add_generation_prompt)
        if not add_generation_prompt and messages[-1].role == "assistant":
            ids.append(self._end_of(messages[-1]))
        return ids

    def _end_of(self, answer: Message) -> int:
        return self._role_ids[OBSERVATION if is_call(answer) else USER]

    def _answers(self, messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
        """Yield the turns of each answer; where calls are metadata, each message is one."""
        if not self._has_metadata:
            yield from super()._answers(messages)
            return
        for index, message in enumerate(messages):
            if message.role == "assistant":
                yield index, index + 1

    def _find_stop(
        self, messages: Sequence[Message], end_turn: int, ids: Sequence[int], start: int
    ) -> int:
        """Find the position after the role that ends the answer, which may be the assistant's."""
        if end_turn == len(messages):
            return len(ids)
        turns = self._render(messages[:end_turn])[:-1]
        self._check_prefix(turns, ids, f"the conversation up to turn {end_turn - 1}")
        if len(turns) == len(ids) or ids[len(turns)] not in self._role_ids.values():
            raise TemplateError(
                f"no turn that this chat template writes follows the answer at turn {end_turn - 1}"
                f", and the role of one ends it ({', '.join(self._role_ids)}). Put system messages "
                "first, and leave no turn empty."
            )
        return len(turns) + 1

    def _written(
        self, messages: Sequence[Message]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Return messages and tools in the form that the template reads.

        Raises:
            TemplateError: it would leave out tools or a call.
        """
        for index, message in enumerate(messages):
            is_lost = is_call(message) and not self._has_calls
            if is_lost or (message.tools and not self._has_tools | self._has_tools_in_messages):
                raise TemplateError(
                    f"turn {index} has {'a call' if is_lost else 'tools'}, which the chat template "
                    "of this checkpoint leaves out. Use the chat_template.jinja of the published "
                    "model, or rows without tools."
                )
        if self._has_metadata:
            return self._with_metadata(messages)
        written, tools = to_openai(messages)
        return [self._with_thought(entry) for entry in written], tools

    def _with_thought(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Pass a thought in its own field, where the template reads that."""
        if entry["role"] != "assistant" or not self._has_thoughts:
            return entry
        if "reasoning_content" in entry:
            return entry
        if END_THINK not in entry["content"]:
            return entry
        thought, answer = split_thought(entry["content"])
        return {**entry, "reasoning_content": thought.strip("\n"), "content": answer}

    def _with_metadata(
        self, messages: Sequence[Message]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Write calls as metadata and JSON, and tools where the template reads them."""
        result: list[dict[str, Any]] = []
        tools: list[dict[str, Any]] | None = None
        for index, message in enumerate(messages):
            entry: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.role == "system" and message.tools is not None:
                defined = [{"type": "function"} | tool for tool in wrap_tools(index, message.tools)]
                if message.content == TOOLS_PROMPT:
                    entry["content"] = ""  # ChatGLM3's own prompt; the template has its own words
                if self._has_tools:
                    tools = defined or tools
                elif defined:
                    entry["tools"] = defined
                if not entry["content"] and "tools" not in entry:
                    continue
            if self._opening and message.role == "assistant":  # the template leaves it out, too
                entry["content"] = split_thought(message.content)[1].strip()
            if is_call(message):
                entry |= {"metadata": message.metadata, "content": _arguments_of(message)}
            result.append(entry)
        return result, tools

    # ---- answers whose thought the prompt begins -------------------------------------------

    def _find_opening(self) -> str:
        """Find what the prompt writes of an answer, which must be the beginning of a thought.

        Raises:
            TemplateError: the prompt is something else than the beginning of a conversation.
        """
        asked = render(self._tokenizer, [_ASKED], None, add_generation_prompt=True)
        answered = [_ASKED, {"role": "assistant", "content": "b"}]
        whole = render(self._tokenizer, answered, None)
        if whole[: len(asked)] == asked:
            return ""
        *before, opening = split_at(asked, self._role_ids[ASSISTANT])
        text = decode(self._tokenizer, opening)
        if not text.endswith(THINK):
            self._check_prefix(asked, whole, "the prompt of a first answer")
        return text if before else ""

    def _encode_after_thought(self, conversation: Conversation) -> Example:
        """Encode a row whose last answer alone is learned: its prompt, and what comes after."""
        messages = conversation.messages
        learned = [index for index, message in enumerate(messages) if is_learned(message)]
        if not learned:
            ids = self._render(messages)
            return Example(ids, [IGNORE] * len(ids))
        *_, answer = messages
        if learned != [len(messages) - 1] or answer.role != "assistant":
            raise TemplateError(
                f"turn {learned[0]} is learned, and this chat template shows earlier answers "
                "without their thoughts, so that only the last turn of a row can be. Set "
                "data.mask_history: true, and let each row end with an answer."
            )
        if is_call(answer):
            raise TemplateError(
                f"turn {learned[0]} is a call, and this chat template begins every answer with a "
                "thought, so a call cannot be learned. Use a checkpoint without thoughts, such as "
                "GLM-4-9B-0414."
            )
        if len(messages) == 1:
            raise TemplateError(
                "turn 0 is an answer, and this model's chat template needs a message before it."
            )
        prompt = self.prompt_ids(Conversation(messages[:-1]))
        thought, text = answer.reasoning, f"\n{answer.content}"
        if not thought:
            thought, text = split_thought(answer.content)
        parts = [{"role": "assistant", "thought": thought, "content": text}]
        written = render(self._tokenizer, parts, None, chat_template=_AFTER_THINK)
        written.append(self._end_of(answer))
        weight = is_learned(answer)
        weights = [1.0] * len(prompt) + [weight] * len(written) if type(weight) is float else None
        return Example([*prompt, *written], [IGNORE] * len(prompt) + written, weights=weights)

    # ---- reading ---------------------------------------------------------------------------

    def _parse(self, ids: Sequence[int], is_partial: bool) -> list[Message]:
        messages: list[Message] = []
        parts = split_at(self._until_stop(ids), self._role_ids[ASSISTANT])
        to_text = partial(decode, self._tokenizer)
        for number, part in enumerate(parts):
            is_open = is_partial and number == len(parts) - 1
            opening = self._opening if number == 0 else ""
            if self._has_metadata:
                messages.append(read_metadata_reply(opening + to_text(part), is_open))
            else:
                messages += read_tool_calls(part, self._marks, to_text, is_open)
        return messages


def _arguments_of(call: Message) -> str:
    """Return the arguments of a call as JSON; code for an interpreter stays as it is."""
    try:
        return json.dumps(parse_tool_call(call.content), ensure_ascii=False)
    except ValueError:
        return call.content
