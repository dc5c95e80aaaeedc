"""Run one request: from what it asks for to the pieces of its answers.

    ChatRequest -> prompt ids, sampling, constraint -> n jobs of the engine -> pieces of n choices

Prompts come from the template object that training used, so they have the ids that training had.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from glmtune.conversation import Conversation, check_turns, read_messages
from glmtune.errors import TemplateError
from glmtune.use.generate import Constraint, Request, Sampling, Slot
from glmtune.use.serve.constraints import Beginnings, JsonObject
from glmtune.use.serve.engine import Engine, Job, QueueFullError
from glmtune.use.serve.hosted import Served
from glmtune.use.serve.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    NamedTool,
)
from glmtune.use.serve.reply import ReplyWriter

Finish = Literal["stop", "length", "tool_calls"]
LEAST_TEMPERATURE = 1e-4  # below it the likeliest token is taken: scores divided by it overflow


@dataclass
class Choice:
    """One of the answers to a request.

    Attributes:
        index: its number.
        job: that generates it.
        writer: reads its text.
        finish_reason: why it is over; None while it is not.
        num_scored: tokens whose scores were given.
        num_tokens: tokens that were read, without the stop token.
    """

    index: int
    job: Job
    writer: ReplyWriter
    finish_reason: Finish | None = None
    num_scored: int = 0
    num_tokens: int = 0

    def read(self) -> str | None:
        """Return what is new; None if nothing is.

        Raises:
            ApiError: it was not completed.
        """
        ending = self.job.ending  # before the tokens, which are complete if this is set
        if ending in ("failed", "timeout", "closed"):
            raise _incomplete(self.job)
        ids = list(self.job.slot.completion)
        self.num_tokens = len(ids) - bool(ids and ids[-1] in self.job.slot.stop_ids)
        piece = self.writer.read(ids, is_complete=bool(ending))
        if self.writer.is_stopped:
            self.finish_reason = "stop"
        elif ending:
            has_ended = self.job.slot.has_ended
            self.finish_reason = "stop" if has_ended else "length"
            if self.writer.calls:
                self.finish_reason = "tool_calls"
        return piece if piece or self.finish_reason else None

    def new_scores(self) -> list[Any]:
        """Return the scores of tokens that were not given yet, without the stop token."""
        scores = self.job.slot.scores[self.num_scored : self.num_tokens]
        self.num_scored += len(scores)
        return scores


def _incomplete(job: Job) -> ApiError:
    if job.ending == "timeout":
        return ApiError(
            "the answer took longer than this server allows. Ask for fewer tokens, or try again "
            "when it is less busy.",
            504,
            code="timeout",
        )
    if job.ending == "closed":
        return ApiError("the server is shutting down. Try again later.", 503, code="closing")
    return ApiError(job.slot.failure, 500, code="generation_failed")


@dataclass
class Run:
    """The choices of a request while they are generated.

    Attributes:
        served: that answers.
        choices: one per answer.
        engine: that generates them.
        num_prompt_tokens: of all prompts.
    """

    served: Served
    choices: list[Choice]
    engine: Engine
    num_prompt_tokens: int
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def pieces(self, *, whole: bool = False) -> AsyncIterator[tuple[Choice, str]]:
        """Yield what is new of any choice, until all are over.

        Args:
            whole: nobody reads pieces, so they are read only where a stop string may end one.

        Raises:
            ApiError: a choice was not completed.
        """
        try:
            while left := [c for c in self.choices if c.finish_reason is None]:
                await self._news.wait()
                self._news.clear()
                for choice in left:
                    if whole and not choice.job.ending and not choice.writer.may_stop:
                        continue
                    if choice.job.ending == "released":
                        return
                    if (piece := choice.read()) is not None:
                        if choice.writer.is_stopped:
                            self.engine.release(choice.job)
                        yield choice, piece
        finally:
            self.release()

    def release(self) -> None:
        """Free the places of all choices that are still generated."""
        for choice in self.choices:
            if not choice.job.ending:
                self.engine.release(choice.job)

    @property
    def usage(self) -> dict[str, Any]:
        """The tokens of the request."""
        generated = sum(choice.num_tokens for choice in self.choices)
        reused = sum({id(c.job): c.job.num_reused for c in self.choices}.values())
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": min(reused, self.num_prompt_tokens)},
        }


class Answerer:
    """Starts the runs of requests.

    Args:
        engine: that generates.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._encoder = ThreadPoolExecutor(1, "glmtune-encoder")  # a long text blocks nobody else

    def served(self, name: str) -> Served:
        """Find a model by its name.

        Raises:
            ApiError: there is none.
        """
        names = self.engine.hosted.names
        if name not in names:
            raise ApiError(
                f"there is no model {name[:100]!r} here. Use one of {', '.join(names)}.",
                404,
                param="model",
                code="model_not_found",
            )
        return names[name]

    async def chat(self, asked: ChatRequest) -> Run:
        """Start the answers of a chat.

        Raises:
            ApiError: the messages cannot be rendered or are too long, or the server is full.
        """
        served = self.served(asked.model)
        forced, uses_tools = _tool_choice(asked, served)
        tools = [tool.model_dump() for tool in asked.tools or ()] if uses_tools else None

        def encode() -> tuple[list[int], Callable[[], Constraint | None]]:
            messages = read_messages(asked.messages, tools)
            check_turns(messages)
            if messages[-1].role == "assistant":
                raise TemplateError(
                    "the last message is from the assistant, so there is nothing to answer. End "
                    "with a message of the user, or with the result of a tool."
                )
            ids = served.template.prompt_ids(Conversation(messages))
            return ids, _constraint_of(asked, served, forced)

        ids, constraint = await self._encode(encode, "messages")
        most = asked.max_completion_tokens or asked.max_tokens
        return self._start(
            served,
            [ids],
            asked,
            most,
            served.template.stop_ids,
            constraint,
            lambda: ReplyWriter(served, asked.stop, reads_calls=uses_tools),
        )

    async def complete(self, asked: CompletionRequest) -> Run:
        """Start continuing texts without roles.

        Raises:
            ApiError: as for `chat`.
        """
        served = self.served(asked.model)
        prompts = await self._encode(lambda: [served.text_ids(t) for t in asked.prompt], "prompt")
        if not all(prompts):
            raise ApiError("'prompt' has no token. Give a text to continue.", param="prompt")
        plain = served.text_template.stop_ids if served.text_template is not None else ()
        return self._start(
            served,
            prompts,
            asked,
            asked.max_tokens or 16,  # as OpenAI's
            (*served.template.stop_ids, *plain),
            lambda: None,
            lambda: ReplyWriter(served, asked.stop, is_text=True),
        )

    async def embed(self, asked: EmbeddingRequest) -> tuple[list[list[float]], int]:
        """Return the mean of the last hidden states of texts, and their number of tokens.

        Raises:
            ApiError: a text is too long, or the server is full.
        """
        served = self.served(asked.model)
        texts = await self._encode(lambda: [served.text_ids(t) for t in asked.input], "input")
        for ids in texts:
            self._room(served, ids, "input")
        loop = asyncio.get_running_loop()
        vectors = []
        for ids in texts:
            vector: asyncio.Future[list[float]] = loop.create_future()

            def errand(ids: list[int] = ids, vector: asyncio.Future[Any] = vector) -> None:
                try:
                    found: Any = served.lane.embed(served.adapter, ids)
                except Exception as error:  # of torch or the model: memory, a device
                    found = ApiError(f"the model could not read the text: {error}"[:300], 500)
                loop.call_soon_threadsafe(_settle, vector, found)

            try:
                self.engine.run_between_steps(errand)
            except QueueFullError as error:
                raise _busy(error) from None
            vectors.append(await vector)
        return vectors, sum(map(len, texts))

    async def _encode(self, encode: Callable[[], Any], param: str) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._encoder, encode)
        except TemplateError as error:
            raise ApiError(str(error), param=param) from None

    def _room(self, served: Served, ids: Sequence[int], param: str) -> int:
        """Return how many tokens may follow a prompt.

        Raises:
            ApiError: it is too long.
        """
        context = getattr(served.lane.model.config, "max_position_embeddings", None)
        longest = min(context or self.engine.limits.max_length, self.engine.limits.max_length)
        if len(ids) >= longest:
            raise ApiError(
                f"the prompt has {len(ids):,} tokens, which leaves no room for an answer in the "
                f"{longest:,} that this server allows. Shorten it.",
                param=param,
                code="context_length_exceeded",
            )
        return longest - len(ids)

    def _start(
        self,
        served: Served,
        prompts: Sequence[Sequence[int]],
        asked: ChatRequest | CompletionRequest,
        max_tokens: int | None,
        stop_ids: Sequence[int],
        constraint: Callable[[], Constraint | None],
        writer: Callable[[], ReplyWriter],
    ) -> Run:
        """Hand the jobs of a request to the engine."""
        if not self.engine.is_alive:
            raise ApiError("the generator has stopped. Restart the server.", 503, code="stopped")
        param = "messages" if isinstance(asked, ChatRequest) else "prompt"
        sampling = _sampling_of(asked)
        limit = min(max_tokens or 2**31, self.engine.limits.max_new_tokens)
        num_choices = asked.n or 1
        news = asyncio.Event()
        loop = asyncio.get_running_loop()
        choices: list[Choice] = []
        for ids in prompts:
            room = self._room(served, ids, param)
            for number in range(num_choices):
                generator = sampling.generator(served.lane.model.device, number)
                slot = Slot(
                    Request(ids, min(limit, room), generator),
                    sampling,
                    stop_ids,
                    group=served.adapter,
                    constraint=constraint(),
                    num_top=asked.num_top,
                )
                job = Job(served.lane, slot, lambda: _wake(loop, news))
                choices.append(Choice(len(choices), job, writer()))
        try:
            self.engine.submit([choice.job for choice in choices])
        except QueueFullError as error:
            raise _busy(error) from None
        return Run(served, choices, self.engine, sum(map(len, prompts)), news)


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(news.set)


def _settle(future: "asyncio.Future[Any]", found: Any) -> None:
    if future.cancelled():
        return
    if isinstance(found, ApiError):
        future.set_exception(found)
    else:
        future.set_result(found)


def _busy(error: QueueFullError) -> ApiError:
    return ApiError(
        f"the server is busy and its queue is full. Try again in {error.retry_seconds} seconds.",
        429,
        code="queue_full",
        headers={"Retry-After": str(error.retry_seconds)},
    )


def _sampling_of(asked: ChatRequest | CompletionRequest) -> Sampling:
    """Return how a request wants to be sampled; what it leaves open is as in `glmtune chat`."""
    given = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
        )
        if (value := getattr(asked, name)) is not None
    }
    if given.get("temperature", 1) < LEAST_TEMPERATURE:
        given["temperature"] = 0.0
    return Sampling(**given, top_k=max(asked.top_k or 0, 0))


def _tool_choice(asked: ChatRequest, served: Served) -> tuple[list[str], bool]:
    """Return the tools of which one must be called, and whether tools are declared at all.

    Raises:
        ApiError: a tool is demanded that was not declared, or calls cannot be read back.
    """
    names = [tool.function.name for tool in asked.tools or ()]
    choice = asked.tool_choice
    if not names:
        if choice in (None, "none", "auto"):
            return [], False
        raise ApiError(
            "'tool_choice' demands a tool, but there are no 'tools'. Declare them.",
            param="tool_choice",
        )
    if choice == "none":
        return [], False
    if asked.response_format is not None and asked.response_format.type == "json_object":
        raise ApiError(
            "'response_format' json_object and 'tools' are not supported together. Leave one out.",
            param="response_format",
        )
    if choice in (None, "auto"):
        return [], True
    if not served.has_tool_calls:
        raise ApiError(
            f"calls of {served.name} cannot be read back, so a tool cannot be demanded. Use "
            "tool_choice auto, or a ChatGLM3.",
            param="tool_choice",
        )
    wanted = [choice.function.name] if isinstance(choice, NamedTool) else names
    if missing := [name for name in wanted if name not in names]:
        raise ApiError(
            f"'tool_choice' names {missing[0][:60]!r}, which is not among the tools: "
            f"{', '.join(names)[:300]}.",
            param="tool_choice",
        )
    return wanted, True


def _constraint_of(
    asked: ChatRequest, served: Served, forced: Sequence[str]
) -> Callable[[], Constraint | None]:
    """Return what makes the constraint of each choice."""
    tokenizer, stop_ids = served.tokenizer, served.template.stop_ids
    if forced:
        lines = tokenizer.encode_texts([f"{name}\n" for name in forced])
        return lambda: Beginnings(lines)
    if asked.response_format is None or asked.response_format.type == "text":
        return lambda: None
    beginning = tokenizer.encode_texts(["\n"])[0] if served.has_tool_calls else []
    greedy = {"num_allowed": 1} if asked.temperature == 0 else {}
    return lambda: JsonObject(served.token_bytes, beginning, stop_ids, **greedy)
