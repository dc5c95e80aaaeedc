"""Requests to a server: bodies go to the application in this process, without a socket."""

import asyncio
import copy
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutations import mutate_value
from tests.fuzz.surface import Attempt, Healthy, Surface

from glmtune.errors import GlmtuneError
from glmtune.use.serve.access import Access
from glmtune.use.serve.app import make_app
from glmtune.use.serve.engine import Engine, Limits
from glmtune.use.serve.hosted import open_hosted
from glmtune.use.serve.metrics import Metrics

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "MODEL", "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1,
        "n": 1, "stop": ["a", "b"], "presence_penalty": 0.1, "frequency_penalty": 0.1,
        "logprobs": True, "top_logprobs": 2, "stream": False, "tools": [TOOL],
        "stream_options": {"include_usage": True}, "tool_choice": "auto",
        "response_format": {"type": "text"},
        "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
        ],
    },
    "/v1/completions": {"model": "MODEL", "prompt": ["你", "b"], "max_tokens": 1, "logprobs": 1},
    "/v1/embeddings": {"model": "MODEL", "input": ["你好"], "encoding_format": "float"},
}  # fmt: skip


VALUES = {
    "model.name_or_path": "nano", "data.train": ["rows.jsonl"], "output.dir": "out/b",
    "adapter.method": "lora", "adapter.r": 8, "training.learning_rate": 1e-4, "data.columns": {},
}  # fmt: skip
RECIPE_TEXT = "{model: {name_or_path: nano}, data: {train: rows.jsonl}, output: {dir: out/a}}"
BOARD_BODIES: dict[str, dict[str, Any]] = {
    "/api/files": {"path": "out"},
    "/api/look": {"path": "rows.jsonl", "model": "", "first": 1, "columns": {}, "format": ""},
    "/api/check": {"values": VALUES, "overrides": ["adapter.r=4", "training.max_steps=3"]},
    "/api/read": {"name": "", "path": "out/a/recipe.yaml", "text": "model: {name_or_path: nano}"},
    "/api/save": {"path": "mine.yaml", "values": VALUES, "overwrite": True},
    "/api/run": {"path": "out/a", "have": "1:2"},
    "/api/compare": {"paths": ["out/a", "out/b"]},
    "/api/stop": {"path": "out/a", "at_once": True},
    "/api/job": {"id": "20261128-000000-001-merge"},
    "/api/resume": {"path": "out"},
    "/api/export": {"path": "out", "to": "merged", "output": "merged", "quantize": ""},
}


def mutated(body: dict[str, Any], random: Random) -> bytes:
    """A body with one to three changes, or with damaged bytes."""
    body = mutate_value(copy.deepcopy(body), random)
    data = bytearray(json.dumps(body).encode())
    for _ in range(random.choice((0, 0, 0, 1, 4))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data[: random.choice((len(data), len(data), len(data), random.randrange(200)))])


async def post(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a body to an application, as a server does."""
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "headers": headers,
        "query_string": b"", "scheme": "http", "root_path": "", "raw_path": path.encode(),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    await app(scope, receive, send)
    content = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return sent[0]["status"], content


def of_requests(healthy: Healthy) -> Attempt:
    """Bodies in the form of the API: an answer, or the client's fault in the form of the API."""
    hosted = open_hosted(str(healthy.model), {})
    metrics = Metrics()
    engine = Engine(hosted, Limits(max_batch=8, num_kept=2, max_length=256), metrics)
    app = make_app(engine, metrics, Access(max_body_bytes=100_000))
    [model] = hosted.names
    engine.start()

    def attempt(random: Random, folder: Path) -> None:
        path = random.choice(sorted(BODIES))
        sent = post(app, path, mutated(BODIES[path] | {"model": model}, random))
        status, content = asyncio.run(asyncio.wait_for(sent, 60))
        assert b"Traceback" not in content
        if status == 200:
            return
        assert 400 <= status < 500, (status, content[:300])
        error = json.loads(content)["error"]
        assert error["type"] == "invalid_request_error", error
        assert (engine.num_running, engine.num_waiting) == (0, 0)
        raise GlmtuneError(error["message"])

    return attempt


def of_board(healthy: Healthy) -> Attempt:
    """Bodies to the board: an answer, or a refusal, and nothing written outside of its folder."""
    from glmtune.cli.board.app import make_app as make_board
    from glmtune.cli.board.folder import StartFolder

    start = healthy.folder / "board" / "start"
    (start / "out" / "a").mkdir(parents=True)
    (start / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (start / "out" / "a" / "recipe.yaml").write_text(RECIPE_TEXT)
    (start / "out" / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    shutil.copytree(start / "out" / "a", start / "out" / "b")
    app = make_board(StartFolder(start.resolve()), Access())

    def attempt(random: Random, folder: Path) -> None:
        path = random.choice(sorted(BOARD_BODIES))
        sent = post(app, path, mutated(BOARD_BODIES[path], random))
        status, content = asyncio.run(asyncio.wait_for(sent, 60))
        assert b"Traceback" not in content
        assert [each.name for each in start.parent.iterdir()] == ["start"]
        if status == 200:
            return
        assert 400 <= status < 500, (path, status, content[:300])
        raise GlmtuneError(json.loads(content)["error"])

    return attempt


SURFACES = (
    Surface("requests to a server", of_requests, 20),
    Surface("requests to the board", of_board, 10),
)
