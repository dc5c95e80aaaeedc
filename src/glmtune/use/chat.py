"""A chat session: user messages and tool results in, streamed replies out.

    session = open_session("./chatglm3-6b", "out/adapter")  # glmtune.use.open
    for piece in session.stream("你好"):
        print(piece, end="", flush=True)
    session.last_reply.messages  # the reply as training data would have it

The prompt comes from the same template object that training uses, and the tokens from the same
generator that answers the prompts of a run's proofs (`glmtune.use.generate`).
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from glmtune.conversation import (
    TOOLS_PROMPT,
    Conversation,
    Message,
    Role,
    check_turns,
    read_messages,
)
from glmtune.errors import TemplateError
from glmtune.template.base import Template
from glmtune.template.pieces import UNFINISHED
from glmtune.use.generate import (
    AnyCache,
    Request,
    Sampling,
    crop_cache,
    generate_stepwise,
    make_cache,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        messages: of the model; several if a remark precedes a tool call.
        num_tokens: of the answer, without the stop token.
        ended_by: "stop" if the model ended it, "length" if it reached the limit, "interrupt" if
            the caller stopped it.
        num_left_out: the oldest messages that did not fit in the prompt.
    """

    messages: tuple[Message, ...]
    num_tokens: int
    ended_by: Literal["stop", "length", "interrupt"]
    num_left_out: int

    @property
    def text(self) -> str:
        """The answer as it is streamed."""
        return reply_text(self.messages)

    def __str__(self) -> str:
        return self.text


def reply_text(messages: Sequence[Message]) -> str:
    r"""Join messages to one text; a tool call is its name, a line break and the call.

    The text of an unfinished reply is a prefix of the text of the finished one.
    """
    parts = [
        f"{name}\n{message.content}" if (name := message.metadata.strip()) else message.content
        for message in messages
    ]
    return "\n".join(parts)


class ChatSession:
    """A conversation with a model, to which user messages and replies are appended.

    Args:
        model: a causal language model, with or without an adapter.
        template: builds its prompts, and defines the stop tokens.
        system: messages before the conversation.
        sampling: how tokens are sampled.
    """

    def __init__(
        self,
        model: Any,
        template: Template,
        *,
        system: Sequence[Message] = (),
        sampling: Sampling | None = None,
    ) -> None:
        self.model = model.eval()
        self.template = template
        self.sampling = sampling or Sampling()
        self.system = tuple(system)
        self.messages = self.system
        self.last_reply: Reply | None = None
        self._generator = self.sampling.generator(model.device)
        self._cache: AnyCache | None = None
        self._cached_ids: list[int] = []

    def reset(self, system: Sequence[Message] | None = None) -> None:
        """Clear the conversation, and replace the system message if one is given."""
        if system is not None:
            self.system = tuple(system)
        self.messages = self.system

    def undo(self) -> bool:
        """Remove the last user message and what followed it; False if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                self.messages = self.messages[:index]
                return True
        return False

    def reply(self, text: str, role: Role = "user") -> Reply:
        """Answer a message.

        Raises:
            TemplateError: the role is not allowed here, or the message is too long for the model.
            CheckpointError: the model gives scores that are not finite.
        """
        for _ in self.stream(text, role):
            pass
        assert self.last_reply is not None
        return self.last_reply

    def stream(self, text: str, role: Role = "user") -> Generator[str, None, None]:
        """Answer a message piece by piece: complete characters, which joined are the answer.

        Closing the iterator, or an interrupt, ends the answer and keeps what was generated.
        An error leaves the conversation unchanged.

        Args:
            text: of the message.
            role: of its author; "observation" is the result of a tool.

        Raises:
            TemplateError: the role is not allowed here, or the message is too long for the model.
            CheckpointError: the model gives scores that are not finite.
        """
        before = self.messages if self.has_history else self.system
        messages, prompt_ids = self._fit((*before, Message(role, text)))
        num_left_out = len(before) + 1 - len(messages)
        cache, num_cached = self._take_cache(prompt_ids)
        ids: list[int] = []
        shown = ""
        try:
            for ids in self._generate(prompt_ids, cache, num_cached):
                text = reply_text(self.template.parse_partial(ids))
                if text.startswith(shown) and not text.endswith(UNFINISHED) and text != shown:
                    piece, shown = text[len(shown) :], text
                    yield piece
        except (GeneratorExit, KeyboardInterrupt):
            if ids:
                self._remember(messages, ids, num_left_out, is_interrupted=True)
            raise
        self._cache = cache
        self._cached_ids = [*prompt_ids, *ids[:-1]]  # the last token was never an input
        reply = self._remember(messages, ids, num_left_out)
        if rest := reply.text.removeprefix(shown):  # bytes that form no complete character
            yield rest

    def _generate(
        self, prompt_ids: Sequence[int], cache: AnyCache, num_cached: int
    ) -> Iterator[list[int]]:
        """Generate an answer, and give its ids after each token, including the stop token."""
        max_new_tokens = self.sampling.max_new_tokens
        if (context := self.context_length) is not None:
            max_new_tokens = min(max_new_tokens, context - len(prompt_ids))
        request = Request(prompt_ids, max_new_tokens, self._generator, num_cached)
        for completion, _ in generate_stepwise(
            self.model,
            [request],
            cache,
            stop_ids=self.template.stop_ids,
            sampling=self.sampling,
        ):
            yield completion.ids

    def _remember(
        self,
        messages: tuple[Message, ...],
        ids: Sequence[int],
        num_left_out: int,
        *,
        is_interrupted: bool = False,
    ) -> Reply:
        """Append the answer to the conversation."""
        is_stopped = ids[-1] in self.template.stop_ids
        answer = tuple(self.template.parse(ids))
        ended_by: Literal["stop", "length", "interrupt"] = "stop" if is_stopped else "length"
        self.messages = (*messages, *answer)
        self.last_reply = Reply(
            messages=answer,
            num_tokens=len(ids) - is_stopped,
            ended_by="interrupt" if is_interrupted else ended_by,
            num_left_out=num_left_out,
        )
        return self.last_reply

    @property
    def has_history(self) -> bool:
        """Whether the template supports earlier turns; `plain` completes a single prompt."""
        return self.template.description.get("layout") != "plain"

    @property
    def context_length(self) -> int | None:
        """The context length of the model, in tokens; None if its config has none."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def _fit(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], list[int]]:
        """Drop the oldest turns until the prompt leaves room for an answer."""
        check_turns(messages)
        prompt_ids = self.template.prompt_ids(Conversation(messages))
        if (context := self.context_length) is None:
            return messages, prompt_ids
        room = min(self.sampling.max_new_tokens, context // 2)
        while len(prompt_ids) + room > context and (later := _without_oldest_turn(messages)):
            messages = later
            prompt_ids = self.template.prompt_ids(Conversation(messages))
        if len(prompt_ids) >= context:
            raise TemplateError(
                f"the prompt has {len(prompt_ids):,} tokens, which leaves no room for an answer "
                f"in the {context:,} that the model was made for. Shorten the message."
            )
        return messages, prompt_ids

    def _take_cache(self, prompt_ids: Sequence[int]) -> tuple[AnyCache, int]:
        """Return a cache with the keys and values of a prefix of a prompt, and its length.

        The session gives up its cache, since an interrupt may leave it half written.
        """
        cache, cached_ids = self._cache, self._cached_ids
        self._cache = None
        if cache is None:
            return make_cache(self.model), 0
        same = takewhile(lambda pair: pair[0] == pair[1], zip(cached_ids, prompt_ids, strict=False))
        num_shared = min(len(list(same)), len(prompt_ids) - 1)  # at least one token is computed
        if not crop_cache(cache, num_shared, len(cached_ids)):
            return make_cache(self.model), 0
        return cache, num_shared


def _without_oldest_turn(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """Drop the first user message and its answers; None if no turn would remain."""
    turns = [index for index, message in enumerate(messages) if message.role == "user"]
    return None if len(turns) < 2 else messages[: turns[0]] + messages[turns[1] :]


def system_messages(text: str | None, tools: Sequence[Any] | None = None) -> tuple[Message, ...]:
    """Make the messages before a conversation, which declare its tools."""
    if text is None and tools is None:
        return ()
    content = TOOLS_PROMPT if text is None else text
    return read_messages([{"role": "system", "content": content}], tools)
