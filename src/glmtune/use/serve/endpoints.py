"""The endpoints of OpenAI's API: a request in, JSON or a stream of events out."""

import asyncio
import base64
import json
import logging
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from glmtune.use.serve.answers import Answerer, Choice, Run
from glmtune.use.serve.metrics import Metrics
from glmtune.use.serve.protocol import (
    AnyRequest,
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    read_request,
)
from glmtune.use.serve.reply import token_scores
from glmtune.use.serve.token_text import token_text

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
Chunk = dict[str, Any]
BODY_SECONDS = 30.0  # to receive a body


class Endpoints:
    """What the server answers.

    Args:
        answerer: starts the runs of requests.
        metrics: counts them.
        max_body_bytes: of a request.
    """

    def __init__(self, answerer: Answerer, metrics: Metrics, max_body_bytes: int) -> None:
        self._answerer, self._metrics = answerer, metrics
        self._max_body_bytes = max_body_bytes
        self._began = int(time.time())

    async def chat(self, request: Request) -> Response:
        """Answer `/v1/chat/completions`."""
        asked = await self._read(request, ChatRequest)
        run = await self._answerer.chat(asked)
        return await self._answer(request, asked, run, _ChatForm(asked, run))

    async def complete(self, request: Request) -> Response:
        """Answer `/v1/completions`."""
        asked = await self._read(request, CompletionRequest)
        run = await self._answerer.complete(asked)
        return await self._answer(request, asked, run, _TextForm(asked, run))

    async def embed(self, request: Request) -> Response:
        """Answer `/v1/embeddings`: the mean of the last hidden states."""
        asked = await self._read(request, EmbeddingRequest)
        vectors, num_tokens = await self._answerer.embed(asked)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if asked.encoding_format == "base64" else vector,
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})

    async def models(self, request: Request) -> Response:
        """Answer `/v1/models`."""
        names = self._answerer.engine.hosted.names
        return JSONResponse({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        """Answer `/v1/models/NAME`."""
        return JSONResponse(self._model(request.path_params["name"]))

    async def health(self, request: Request) -> Response:
        """Answer `/health`: 200 while the engine runs."""
        is_alive = self._answerer.engine.is_alive
        status = {"status": "ok" if is_alive else "stopped"}
        return JSONResponse(status, 200 if is_alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Answer `/metrics`, for Prometheus."""
        engine = self._answerer.engine
        gauges = {"running": engine.num_running, "waiting": engine.num_waiting}
        text = self._metrics.text(gauges)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model(self, name: str) -> dict[str, Any]:
        served = self._answerer.served(name)
        return {
            "id": served.name,
            "object": "model",
            "created": self._began,
            "owned_by": "glmtune",
            "root": served.parent or served.name,
            "parent": served.parent,
        }

    async def _read(self, request: Request, kind: type[AnyRequest]) -> AnyRequest:
        """Receive and read a body.

        Raises:
            ApiError: it is too large or too slow, is not declared as JSON, or cannot be read.
        """
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise ApiError(
                f"the content type is {content_type[:60]!r}, expected application/json. Send the "
                "header Content-Type: application/json.",
                415,
            )
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > self._max_body_bytes:
                        raise ApiError(
                            f"the body has more than {self._max_body_bytes:,} bytes, the most that "
                            "this server reads. Send less, or start it with a larger "
                            "--max-body-bytes.",
                            413,
                            code="body_too_large",
                            headers={"Connection": "close"},
                        )
        except TimeoutError:
            raise ApiError(
                f"the body did not arrive within {BODY_SECONDS:g} seconds. Send it again.",
                408,
                headers={"Connection": "close"},
            ) from None
        except ClientDisconnect:
            raise ApiError("the client left.", 499) from None
        return read_request(bytes(body), kind)

    async def _answer(
        self, request: Request, asked: ChatRequest | CompletionRequest, run: Run, form: "_Form"
    ) -> Response:
        """Answer at once, or with a stream of events."""
        watch = asyncio.create_task(self._watch(request, run))
        if asked.stream:
            includes_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = self._events(run, form, watch, includes_usage)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        try:
            async for choice, _ in run.pieces(whole=True):
                form.take_scores(choice)
        finally:
            watch.cancel()
        if any(choice.finish_reason is None for choice in run.choices):
            raise ApiError("the client left.", 499)
        return JSONResponse(form.whole())

    async def _watch(self, request: Request, run: Run) -> None:
        """Free the places of a run as soon as its client hangs up."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if any(choice.finish_reason is None for choice in run.choices):
            self._metrics.add("cancelled_total")
        run.release()

    async def _events(
        self, run: Run, form: "_Form", watch: "asyncio.Task[None]", includes_usage: bool
    ) -> AsyncIterator[str]:
        """Write the events of a stream, which ends with [DONE] or an error."""
        try:
            for chunk in form.first():
                yield _event(chunk)
            async for choice, piece in run.pieces():
                for chunk in form.chunks(choice, piece):
                    yield _event(chunk)
            if includes_usage:
                yield _event(form.usage())
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body)
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                run.release()


def _event(chunk: Chunk) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class _Form:
    """How answers are written: the fields of one endpoint.

    Args:
        asked: the request.
        run: its answers.
    """

    prefix: str
    name: str
    chunk_name: str

    def __init__(self, asked: ChatRequest | CompletionRequest, run: Run) -> None:
        self._asked, self._run = asked, run
        self._scores: dict[int, list[Any]] = {}
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": run.served.name,
            "system_fingerprint": f"fp_{run.served.template.fingerprint[:12]}",
        }

    def take_scores(self, choice: Choice) -> None:
        """Keep the scores of new tokens for the whole answer."""
        self._scores.setdefault(choice.index, []).extend(choice.new_scores())

    def whole(self) -> dict[str, Any]:
        """Return the complete answer."""
        choices = [self._choice(choice) for choice in self._run.choices]
        return {
            **self._head,
            "object": self.name,
            "choices": choices,
            "usage": self._run.usage,
        }

    def first(self) -> list[Chunk]:
        """Return what comes before the first token."""
        return []

    def chunks(self, choice: Choice, piece: str) -> list[Chunk]:
        """Return the events about a piece of a choice."""
        raise NotImplementedError

    def usage(self) -> Chunk:
        """Return the event that counts tokens."""
        return {**self._chunk([]), "usage": self._run.usage}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk(self, choices: list[dict[str, Any]]) -> Chunk:
        return {**self._head, "object": self.chunk_name, "choices": choices}


class _ChatForm(_Form):
    prefix, name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> list[Chunk]:
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk([{"index": choice.index, "delta": delta, "finish_reason": None}])
            for choice in self._run.choices
        ]

    def chunks(self, choice: Choice, piece: str) -> list[Chunk]:
        chunks = []
        scores = self._logprobs(choice.new_scores())
        if piece or scores:
            part = {"index": choice.index, "delta": {"content": piece}, "finish_reason": None}
            chunks.append(self._chunk([part | ({"logprobs": scores} if scores else {})]))
        if choice.finish_reason is not None:
            delta: dict[str, Any] = {}
            if calls := choice.writer.calls:
                delta["tool_calls"] = [{"index": i, **c.as_json()} for i, c in enumerate(calls)]
                part = {"index": choice.index, "delta": delta, "finish_reason": None}
                chunks.append(self._chunk([part]))
            end = {"index": choice.index, "delta": {}, "finish_reason": choice.finish_reason}
            chunks.append(self._chunk([end]))
        return chunks

    def _choice(self, choice: Choice) -> dict[str, Any]:
        text, calls = choice.writer.text, choice.writer.calls
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["content"] = text or None
            message["tool_calls"] = [call.as_json() for call in calls]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(self._scores.get(choice.index, [])),
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, scores: list[Any]) -> dict[str, Any] | None:
        if self._asked.num_top is None or not scores:
            return None
        return {"content": token_scores(self._run.served.tokenizer, scores), "refusal": None}


class _TextForm(_Form):
    prefix, name, chunk_name = "cmpl", "text_completion", "text_completion"

    def chunks(self, choice: Choice, piece: str) -> list[Chunk]:
        scores = self._logprobs(choice.new_scores())
        if not (piece or scores or choice.finish_reason):
            return []
        part = {"index": choice.index, "text": piece, "logprobs": scores}
        return [self._chunk([part | {"finish_reason": choice.finish_reason}])]

    def _choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.writer.text,
            "logprobs": self._logprobs(self._scores.get(choice.index, [])),
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, scores: list[Any]) -> dict[str, Any] | None:
        """Write scores as the older of OpenAI's two forms has them."""
        if self._asked.num_top is None or not scores:
            return None
        tokenizer = self._run.served.tokenizer
        texts = [token_text(tokenizer, score.token_id) for score in scores]
        starts = [len("".join(texts[:index])) for index in range(len(texts))]
        tops = [
            {token_text(tokenizer, each): value for each, value in score.top} for score in scores
        ]
        return {
            "tokens": texts,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": tops,
            "text_offset": starts,
        }
