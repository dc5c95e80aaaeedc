"""A day of traffic in seconds: clients that finish, hang up, stream and err; nothing piles up."""

import gc
import json
import random
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.use.serve.conftest import Running, ask, running, until

from glmtune.machine import resident_bytes
from glmtune.use.serve.engine import Limits
from glmtune.use.serve.hosted import Hosted

pytestmark = pytest.mark.slow

NUM_CLIENTS, NUM_REQUESTS = 16, 40  # for each client, twice


def client(server: Running, seed: int, problems: list[str]) -> None:
    """Send requests of all kinds, one after the other."""
    draw = random.Random(seed)
    names = list(server.engine.hosted.names)
    where = urlsplit(server.url)
    for _ in range(NUM_REQUESTS):
        text = "北京是中国的首都。" * draw.randint(1, 12)
        body: dict[str, Any] = {
            "model": draw.choice(names),
            "messages": [{"role": "user", "content": text}],
            "max_tokens": draw.choice((1, 4, 16, 60)),
            "stream": False,
        }
        kind = draw.randrange(10)
        if kind < 7:
            status, _ = ask(server.url, "/v1/chat/completions", body)
            if status not in (200, 429):
                problems.append(f"status {status}")
        elif kind == 7:
            ask(server.url, "/v1/chat/completions", body | {"temperature": -1})
        else:
            data = json.dumps(body | {"stream": kind == 8, "max_tokens": 300}).encode()
            with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
                head = (
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                )
                connection.sendall(head.encode() + data[: draw.choice((len(data), 20))])
                connection.settimeout(draw.choice((0.01, 0.1)))
                try:
                    connection.recv(2000)
                except TimeoutError:
                    continue  # it hangs up


def crowd(server: Running, problems: list[str]) -> int:
    """Let all clients come; return the memory that is used when they have left."""
    threads = [
        threading.Thread(target=client, args=(server, seed, problems))
        for seed in range(NUM_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    until(lambda: server.engine.num_running + server.engine.num_waiting == 0)
    gc.collect()
    return resident_bytes()


def test_no_place_and_no_memory_is_lost_to_a_crowd(hosted: Hosted) -> None:
    problems: list[str] = []
    limits = Limits(max_batch=8, max_queue=12, num_kept=4, max_length=512, share_tokens=16)
    with running(hosted, limits) as server:
        first = crowd(server, problems)
        second = crowd(server, problems)
        metrics = server.engine.metrics
        num_threads = threading.active_count()
        until(lambda: threading.active_count() <= num_threads)

        assert problems == []
        assert second - first < 20 * 2**20
        assert metrics.value("cancelled_total") > 20
        assert metrics.value("cached_prompt_tokens_total") > 1000
        status, _ = ask(
            server.url, "/v1/chat/completions",
            {"model": server.base, "messages": [{"role": "user", "content": "你好"}]},
        )  # fmt: skip
        assert status == 200
