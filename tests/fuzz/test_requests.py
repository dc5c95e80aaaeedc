"""Bodies that nobody should send: an answer in the form of the API, never a 5xx or a traceback.

They go to the application in this process, without a socket. `GLMTUNE_FUZZ=5` sends 10,000.
"""

import asyncio
import copy
import json
import logging
from random import Random
from typing import Any

import pytest
from tests.fuzz.mutations import NASTY, _places, number_of_trials

from glmtune.use.serve.app import Access, make_app
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


def mutated(path: str, model: str, random: Random) -> bytes:
    """A body with one to three changes, or with damaged bytes."""
    body: Any = copy.deepcopy(BODIES[path]) | {"model": model}
    for _ in range(random.randint(1, 3)):
        places = list(_places(body))
        parent, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[str(key) + random.choice("sx ")] = parent[key]
            case 2:
                parent[key] = [parent[key]] * random.choice((1, 3, 40))
            case 3:
                parent[key] = {"a": parent[key]}
            case _:
                parent[key] = copy.deepcopy(random.choice(NASTY))
        if not body:
            break
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


def test_no_body_is_answered_with_a_fault_of_the_server(
    tiny_model_dir: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hosted = open_hosted(str(tiny_model_dir), {})
    metrics = Metrics()
    engine = Engine(hosted, Limits(max_batch=8, num_kept=2, max_length=256), metrics)
    app = make_app(engine, metrics, Access(max_body_bytes=100_000))
    [model] = hosted.names
    engine.start()

    async def attack() -> dict[int, int]:
        statuses: dict[int, int] = {}
        for seed in range(number_of_trials(2000)):
            random = Random(seed)
            path = random.choice(sorted(BODIES))
            body = mutated(path, model, random)
            status, content = await asyncio.wait_for(post(app, path, body), 60)
            statuses[status] = statuses.get(status, 0) + 1
            assert status == 200 or 400 <= status < 500, (seed, status, content[:300])
            if status != 200:
                error = json.loads(content)["error"]
                assert error["type"] == "invalid_request_error", (seed, error)
                assert 10 < len(error["message"]) < 2000, (seed, error)
            assert b"Traceback" not in content, seed
        return statuses

    with caplog.at_level(logging.ERROR):
        statuses = asyncio.run(attack())
        healthy = BODIES["/v1/chat/completions"] | {"model": model}
        status, _ = asyncio.run(post(app, "/v1/chat/completions", json.dumps(healthy).encode()))
    assert status == 200
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    engine.close()
    assert caplog.text == ""
    assert statuses[200] > 50  # some mutations are harmless, and reach the model
    assert statuses[400] > 1000
