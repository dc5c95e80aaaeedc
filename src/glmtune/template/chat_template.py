"""Train on the chat template of any tokenizer, after checking that it is fit for training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.errors import TemplateError
from glmtune.files import sha256_of_text
from glmtune.template.base import IGNORE, Example, Template, decode, is_learned
from glmtune.template.probes import PROBES
from glmtune.template.time_limit import time_limit
from glmtune.tool_calls import parse_tool_call, render_tool_call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some templates write today's date, so the same conversation would have other ids tomorrow. This
# macro is put in front of them and shadows the function they call; 26 Jul 2024 is the default date
# of Llama's templates.
_DATE_PARTS = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24"} | {
    "%a": "Fri", "%A": "Friday", "%H": "12", "%M": "00", "%S": "00"
}  # fmt: skip
_PROBE = "probe"  # the name of a tool
_ASKED = Message("user", "a")
MAX_CHARACTERS = 1_000_000  # of a template; published ones have up to 20,000
SECONDS_TO_RENDER = 20  # two short conversations, which take milliseconds
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{part}', '{value}')" for part, value in _DATE_PARTS.items())
    + " }}{%- endmacro %}{{ '' }}"
)


class ChatTemplate(Template):
    """The chat template of a tokenizer, as long as it keeps the rules of `Template`.

    What the template renders for the turns before an answer, with `add_generation_prompt`,
    must be a prefix of what it renders for the complete conversation, and a stop token must
    end the answer. Both are checked for each conversation. Text in a message that spells a
    control token is encoded as text.

    Args:
        tokenizer: with a chat template.

    Raises:
        TemplateError: the tokenizer has no chat template, or one that breaks these rules.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        size = len(str(tokenizer.chat_template or ""))
        if size > MAX_CHARACTERS:
            raise TemplateError(
                f"the chat template of {tokenizer.name_or_path or type(tokenizer).__name__} has "
                f"{size:,} characters, and no published one has {MAX_CHARACTERS:,}. Download "
                "chat_template.jinja and tokenizer_config.json of the model again."
            )
        if not tokenizer.chat_template:
            raise TemplateError(
                f"the tokenizer of {tokenizer.name_or_path or type(tokenizer).__name__} has no "
                "chat template, so the format of its conversations is unknown. Use a chat model, "
                "or put a chat_template.jinja into the folder."
            )
        self._tokenizer = tokenizer
        self.description = {"family": "chat-template", "layout": type(tokenizer).__name__}
        self.stop_ids = self._find_stops()

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Encode many conversations.

        Raises:
            TemplateError: a conversation cannot be rendered; names it and the reason.
        """
        for conversation in conversations:
            self._check_written(conversation.messages)
        return [self._encode(conversation) for conversation in conversations]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Encode the turns, followed by the generation prompt.

        Raises:
            TemplateError: the conversation cannot be rendered.
        """
        self._check_written(conversation.messages)
        return self._render(conversation.messages, add_generation_prompt=True)

    def reads_thoughts(self) -> bool:
        """Whether the chat template writes `reasoning_content`."""
        thought = "a thought"
        answer = Message("assistant", "b", reasoning=thought)
        try:
            ids = self._render((Message("user", "a"), answer))
        except TemplateError:
            return False
        return thought in decode(self._tokenizer, ids)

    def parse(self, ids: Sequence[int]) -> list[Message]:
        """Parse generated ids as one message, whose text is stripped."""
        text = decode(self._tokenizer, self._until_stop(ids), skip_special_tokens=True)
        return [Message("assistant", text.strip())]

    def _check_written(self, messages: Sequence[Message]) -> None:
        """Refuse tools and calls that the template would leave out without a word."""
        for index, message in enumerate(messages):
            is_lost = is_call(message) and not self._writes_calls
            if is_lost or (message.tools and not self._writes_tools):
                to_openai(messages)  # what no template can represent has an error of its own
                raise TemplateError(
                    f"turn {index} has {'a call' if is_lost else 'tools'}, which this model's chat "
                    "template leaves out. Write them into the texts of the row, or use a model "
                    "whose chat template has a place for tools."
                )

    @cached_property
    def _writes_tools(self) -> bool:
        return self._shows(Message("system", TOOLS_PROMPT, tools=[{"name": _PROBE}]), _ASKED)

    @cached_property
    def _writes_calls(self) -> bool:
        call = Message("assistant", render_tool_call({}), metadata=_PROBE)
        return self._shows(_ASKED, call)

    def _shows(self, *messages: Message) -> bool:
        """Whether the ids have the name of a probe; where they cannot be had, the error says so."""
        try:
            ids = self._render(messages)
        except TemplateError:
            return True
        return _PROBE in decode(self._tokenizer, ids)

    def _encode(self, conversation: Conversation, check_all: bool = False) -> Example:
        """Encode a conversation; `check_all` checks answers that are not learned, too."""
        messages = conversation.messages
        ids = self._render(messages)
        labels = [IGNORE] * len(ids)
        weights: list[float] | None = None
        for first, end_turn in self._answers(messages):
            # A remark and its calls are rendered as one, so the smallest weight counts.
            learns = min(is_learned(message) for message in messages[first:end_turn])
            if not learns and not check_all:
                continue
            start = self._find_start(messages, first, ids)
            end = self._find_stop(messages, end_turn, ids, start)
            if learns:
                labels[start:end] = ids[start:end]
            if type(learns) is float:
                weights = weights or [1.0] * len(ids)
                weights[start:end] = [learns] * (end - start)
        return Example(ids, labels, weights=weights)

    def _answers(self, messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
        """Yield the first turn of each answer and the turn after it.

        A remark and the calls after it are one answer.
        """
        index = 0
        while index < len(messages):
            first = index
            index += 1
            if messages[first].role != "assistant":
                continue
            while index < len(messages) and is_call(messages[index]):
                index += 1
            yield first, index

    def _find_start(self, messages: Sequence[Message], first: int, ids: Sequence[int]) -> int:
        """Find the position where the answer at turn `first` begins."""
        if first == 0:
            raise TemplateError(
                "turn 0 is an answer, and this model's chat template needs a message before it."
            )
        prompt = self._render(messages[:first], add_generation_prompt=True)
        self._check_prefix(prompt, ids, f"the prompt of the answer at turn {first}")
        return len(prompt)

    def _find_stop(
        self, messages: Sequence[Message], end_turn: int, ids: Sequence[int], start: int
    ) -> int:
        """Find the position after the stop token of the answer that ends before `end_turn`."""
        turns = ids
        if end_turn < len(messages):
            turns = self._render(messages[:end_turn])
            self._check_prefix(turns, ids, f"the conversation up to turn {end_turn - 1}")
        for position in range(start, len(turns)):
            if turns[position] in self.stop_ids:
                return position + 1
        raise TemplateError(
            f"the chat template ends the answer at turn {end_turn - 1} with none of the stop "
            f"tokens {self._tokenizer.convert_ids_to_tokens(list(self.stop_ids))}, so the model "
            "would never learn to stop."
        )

    def _check_prefix(self, prefix: Sequence[int], ids: Sequence[int], what: str) -> None:
        """Raise an error if ids do not begin with `prefix`.

        Raises:
            TemplateError: shows the first position where they differ.
        """
        if list(ids[: len(prefix)]) == list(prefix):
            return
        same = next(
            (i for i, (a, b) in enumerate(zip(prefix, ids, strict=False)) if a != b),
            min(len(prefix), len(ids)),
        )
        alone, inside = (
            decode(self._tokenizer, some[max(0, same - 4) : same + 12]) for some in (prefix, ids)
        )
        raise TemplateError(
            f"this tokenizer's chat template cannot be trained on: {what} is not the beginning "
            f"of the complete conversation. From token {same} on it is {alone!r} alone, and "
            f"{inside!r} in the conversation. A template that rewrites earlier turns (dropping "
            "their reasoning, for example) shows the model something else in chat than in "
            "training. Learn the last answer alone (data.mask_history: true), or use rows with "
            "one answer each."
        )

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> list[int]:
        """Render messages to ids with the tokenizer's template."""
        return render(self._tokenizer, *self._written(messages), add_generation_prompt)

    def _written(
        self, messages: Sequence[Message]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Return messages and tools in the form that the template reads."""
        return to_openai(messages)

    def _find_stops(self) -> tuple[int, ...]:
        """Find the token that the template puts after an answer, and add the end of texts.

        Raises:
            TemplateError: there is none.
        """
        messages = (Message("user", "a"), Message("assistant", "b"))
        with time_limit(SECONDS_TO_RENDER):
            prompt = self._render(messages[:1], add_generation_prompt=True)
            full = self._render(messages)
        self._check_prefix(prompt, full, "the prompt of a first answer")
        specials = {i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special}
        eos_id = self._tokenizer.eos_token_id
        for token_id in full[len(prompt) :]:
            if token_id in specials or token_id == eos_id:
                return tuple(dict.fromkeys((token_id, eos_id or token_id)))
        raise TemplateError(
            "this tokenizer's chat template puts no special token after an answer "
            f"({self._tokenizer.decode(full)!r}), so the model would never learn to stop."
        )

    def _fingerprinted(self) -> Mapping[str, Any]:
        rendered: list[Any] = []
        for probe in PROBES:
            try:
                example = self._encode(probe, check_all=True)
            except TemplateError:  # a template need not support tools
                rendered.append(None)
            else:
                rendered.append([example.input_ids, example.labels])
        prompt = self.prompt_ids(Conversation(PROBES[0].messages[:1]))
        vocabulary = json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        return {
            "vocabulary": sha256_of_text(vocabulary),
            "chat_template": self._tokenizer.chat_template,
            "examples": rendered,
            "prompt": prompt,
        }


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool = False,
    *,
    chat_template: str | None = None,
) -> list[int]:
    """Render messages to ids with the template of a tokenizer.

    Args:
        tokenizer: with a chat template.
        messages, tools: in the form that the template reads.
        add_generation_prompt: whether the beginning of an answer follows.
        chat_template: another template than the tokenizer's.

    Raises:
        TemplateError: the template does not accept them.
    """
    from jinja2 import TemplateError as JinjaError

    if not messages:
        raise TemplateError("the conversation has no messages; it needs at least one.")
    _check_names(tokenizer, messages, tools)
    try:
        chat_template = chat_template or tokenizer.get_chat_template(tools=tools)
        ids = tokenizer.apply_chat_template(
            messages,
            chat_template=_FIXED_DATE + chat_template,
            tools=tools,  # type: ignore[arg-type]  # list is invariant
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
            sanitize_control_tokens=True,
        )
    except Exception as error:  # the template is a program of others, and may raise anything
        why = str(error).strip().split("\n")[0][:300]
        if not isinstance(error, JinjaError | ValueError | TypeError):
            why = f"{type(error).__name__}: {why}"
        raise TemplateError(
            f"this tokenizer's chat template does not accept the conversation: {why}"
        ) from error
    return list(ids)


def _check_names(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any
) -> None:
    """Refuse control tokens as names in tools and calls, where no library encodes them as text."""
    places = {"the tools": [tools, *(m["tools"] for m in messages if "tools" in m)]}
    for index, message in enumerate(messages):
        if "tool_calls" in message:
            places[f"the call of message {index}"] = message["tool_calls"]
    names = {name: place for place, value in places.items() for name in _names_in(value)}
    for name, place in names.items():
        token = next((t for t in tokenizer.added_tokens_encoder if t in name), None)
        if token is not None:
            raise TemplateError(
                f"{place} has the name {name[:60]!r}, and {token} is a control token of this "
                "model. Rename it."
            )


def _names_in(value: Any) -> Iterator[str]:
    """Yield the names of all objects in a JSON value."""
    if isinstance(value, dict):
        yield from (name for name in value if isinstance(name, str))
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        yield from _names_in(item)


def is_call(message: Message) -> bool:
    """Whether a message calls a tool."""
    return message.role == "assistant" and message.metadata != ""


def to_openai(
    messages: Sequence[Message],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Convert messages and their tools to the form that chat templates expect.

    Raises:
        TemplateError: a tool call cannot be read.
    """
    result: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] | None = None
    num_calls = 0
    for index, message in enumerate(messages):
        if message.role == "system" and message.tools is not None:
            tools = wrap_tools(index, message.tools) or None
            if message.content == TOOLS_PROMPT:
                continue  # ChatGLM's own prompt; a template announces tools in its own words
        if message.role == "observation":
            answered = {"tool_call_id": _call_id(num_calls), "name": _last_call(messages[:index])}
            result.append({"role": "tool", "content": message.content, **answered})
        elif is_call(message):
            num_calls += 1
            follows = index > 0 and messages[index - 1].role == "assistant"
            if not follows:
                result.append({"role": "assistant", "content": ""})
            if message.reasoning:
                result[-1].setdefault("reasoning_content", message.reasoning)
            call = _to_tool_call(index, message, num_calls)
            result[-1].setdefault("tool_calls", []).append(call)
        else:
            result.append({"role": message.role, "content": message.content})
            if message.reasoning:
                result[-1]["reasoning_content"] = message.reasoning
    return result, tools


def wrap_tools(index: int, tools: Any) -> list[dict[str, Any]]:
    """Put OpenAI's wrapper around the definitions of tools, which any chat template expects.

    Raises:
        TemplateError: they are not objects, as only ChatGLM3's own format permits.
    """
    definitions = [tools] if isinstance(tools, dict) else tools
    if not isinstance(definitions, list | tuple) or not all(
        isinstance(tool, dict) for tool in definitions
    ):
        raise TemplateError(
            f"turn {index} has tools that are not objects, which this model's chat template "
            'cannot represent. Write them as [{"name": ..., "description": ..., "parameters": '
            "{...}}]."
        )
    return [
        tool if "function" in tool else {"type": "function", "function": tool}
        for tool in definitions
    ]


def _call_id(number: int) -> str:
    return f"call{number:05d}"  # nine letters or digits, as Mistral's templates require


def _last_call(messages: Sequence[Message]) -> str:
    return next((m.metadata for m in reversed(messages) if is_call(m)), "")


def _to_tool_call(index: int, message: Message, number: int) -> dict[str, Any]:
    try:
        arguments = parse_tool_call(message.content)
    except ValueError as error:
        raise TemplateError(
            f"turn {index} calls {message.metadata!r} in a way that this model's chat template "
            f"cannot represent: {error}"
        ) from error
    function = {"name": message.metadata, "arguments": arguments}
    return {"type": "function", "id": _call_id(number), "function": function}
