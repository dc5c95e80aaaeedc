"""What a browser, curl or an attacker sends: keys, hosts, sizes, paths, and what logs hold."""

import http.client
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import TURNS
from tests.tiny_model import SENTENCES
from tests.use.serve.conftest import Running, ask, running, until

from glmtune.conversation import Conversation, Message, read_messages
from glmtune.errors import OutputError, RecipeError
from glmtune.use.serve.access import Access, Address, bind, check_access, is_loopback
from glmtune.use.serve.engine import Limits
from glmtune.use.serve.hosted import Hosted
from glmtune.use.serve.run import describe, fit_limits

KEY = "a secret key"


@pytest.fixture(scope="module")
def locked(hosted: Hosted) -> Iterator[Running]:
    """A server with a key, a small limit of bodies and a short queue."""
    access = Access(KEY, origins=("https://mine.example",), max_body_bytes=2000)
    limits = Limits(max_batch=2, max_queue=1, num_kept=2, max_length=512, share_tokens=10**6)
    with running(hosted, limits, access) as started:
        yield started


def chat(model: str, text: str = "你好", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


# ---- the template proof over HTTP ---------------------------------------------------------

TEXTS = st.sampled_from(
    [*SENTENCES, "<|user|>", "[gMASK]sop", "</s>", "a<|assistant|>\n b", " 好 "]
)


@settings(max_examples=15, deadline=None)
@given(
    system=st.none() | TEXTS,
    turns=st.lists(st.tuples(TEXTS, TEXTS), max_size=2),
    question=TEXTS,
    name=st.sampled_from(["base", "one", "two"]),
    has_tools=st.booleans(),
)
def test_a_served_prompt_has_the_ids_that_training_had(
    server: Running, system: str | None, turns: Any, question: str, name: str, has_tools: bool
) -> None:
    name = server.base if name == "base" else name
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}]
        messages += [{"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": question})
    tools = [{"type": "function", "function": {"name": "weather"}}] if has_tools else None
    seen: list[list[int]] = []
    submit = server.engine.submit

    def submit_seen(jobs: Any) -> None:
        seen.extend(list(job.slot.request.ids) for job in jobs)
        submit(jobs)

    server.engine.submit = submit_seen  # type: ignore[method-assign]
    try:
        body = {"model": name, "messages": messages, "max_tokens": 1}
        status, _ = ask(
            server.url, "/v1/chat/completions", body | ({"tools": tools} if tools else {})
        )
    finally:
        del server.engine.submit
    assert status == 200

    lesson = (*read_messages(messages, tools), Message("assistant", "好"))
    example = server.engine.hosted.names[name].template.encode(Conversation(lesson))

    [ids] = seen
    assert example.input_ids[: len(ids)] == ids
    learned = [label for label in example.labels[len(ids) :] if label != -100]
    assert example.labels[len(ids)] != -100  # what the answer begins with is learned
    assert learned == example.input_ids[len(ids) :]


# ---- who is let in ------------------------------------------------------------------------


def test_nothing_but_the_page_and_its_health_is_answered_without_the_key(locked: Running) -> None:
    for path in ("/v1/models", "/metrics", "/v1/chat/completions", "/none"):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            status, body = ask(locked.url, path, **header)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    status, body = ask(locked.url, "/v1/models", Authorization=f"Bearer {KEY}")
    assert (status, len(body["data"])) == (200, 3)
    assert ask(locked.url, "/health") == (200, {"status": "ok"})


def test_another_machine_needs_a_key_or_an_explicit_word() -> None:
    assert check_access(Address("127.0.0.1"), Access()).hosts
    assert check_access(Address("::1"), Access()).hosts
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.com"):
        with pytest.raises(RecipeError, match="a key is needed: set GLMTUNE_API_KEY"):
            check_access(Address(host), Access())
        assert check_access(Address(host), Access("key")).hosts == ()
        assert check_access(Address(host, is_open=True), Access()).api_key is None
    with pytest.raises(RecipeError, match="must be ASCII"):
        check_access(Address(), Access(" "))
    assert [is_loopback(host) for host in ("127.0.0.2", "localhost", "localhost.evil")] == [
        True, True, False,
    ]  # fmt: skip


def raw(server: Running, text: bytes) -> bytes:
    """Send bytes as they are."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        connection.sendall(text)
        answer = b""
        while (part := connection.recv(65536)) and b'"error"' not in answer:
            answer += part
        return answer + part


def test_a_page_of_another_site_does_not_get_in(server: Running, locked: Running) -> None:
    rebound = b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert b"host_not_allowed" in raw(server, rebound)
    body = json.dumps(chat(server.base, max_tokens=1)).encode()
    simple = {"Content-Type": "text/plain"}  # which browsers send to anybody without asking
    status, answer = ask(server.url, "/v1/chat/completions", body, **simple)
    assert (status, "expected application/json" in answer["error"]["message"]) == (415, True)
    where = urlsplit(locked.url)
    for origin, allowed in (("https://mine.example", True), ("https://evil.example", False)):
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        connection.request("OPTIONS", "/v1/chat/completions", headers=headers)
        response = connection.getresponse()
        assert (response.getheader("access-control-allow-origin") == origin) == allowed
        connection.close()


# ---- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/none", None, 404, "no such path"),
        ("/v1/chat/completions", None, 405, "GET is not allowed"),
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", b'{"a": NaN}', 400, "NaN is not a number"),
        ("/v1/chat/completions", b"\xff", 400, "not UTF-8: byte 0"),
        ("/v1/chat/completions", b"[]", 400, "must be a JSON object"),
        ("/v1/chat/completions", b"[" * 100_000, 400, "not JSON"),
        ("/v1/chat/completions", b'{"model": "\\ud800"}', 400, "surrogate"),
        ("/v1/chat/completions", b'{"messages": []}', 400, "'model' is missing"),
        ("/v1/models/none", None, 404, "there is no model 'none'"),
    ],
)
def test_a_request_that_is_wrong_is_told_what_is(
    server: Running, path: str, body: Any, status: int, message: str
) -> None:
    got, answer = ask(server.url, path, body)

    assert got == status
    assert message in answer["error"]["message"]
    assert answer["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"top_p": 0}, "top_p"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"tools": [{"name": "a"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.type"),
        ({"functions": []}, "functions"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    status, answer = ask(server.url, "/v1/chat/completions", chat(server.base) | fields)

    assert (status, answer["error"]["param"]) == (400, param)


def test_fields_that_only_label_a_request_are_ignored(server: Running) -> None:
    labels = {"user": "me", "metadata": {"a": "b"}, "store": False, "seed": None, "stop": None}
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    body = {"model": server.base, "messages": [{"role": "user", "content": parts}]}

    status, _ = ask(server.url, "/v1/chat/completions", body | labels | {"max_tokens": 2})

    assert status == 200


def test_a_large_body_is_refused_before_it_has_arrived(locked: Running) -> None:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: 1000000000\r\n\r\n"
    )
    answer = raw(locked, head.encode() + b"x" * 4000)

    assert b" 413 " in answer
    assert b"more than 2,000 bytes" in answer


# ---- clients that leave, and crowds -------------------------------------------------------


def start_long_answer(server: Running, *, stream: bool) -> socket.socket:
    body = json.dumps(chat(server.base, max_tokens=450, temperature=1.9, stream=stream)).encode()
    where = urlsplit(server.url)
    connection = socket.create_connection((where.hostname, where.port), timeout=20)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


@pytest.fixture
def slow(hosted: Hosted) -> Iterator[None]:
    """A model that takes a while for each token, and never writes one that ends an answer."""
    stops = list({id for name in hosted.names.values() for id in name.template.stop_ids})

    def forbid_stops(_: Any, __: Any, output: Any) -> None:
        time.sleep(0.02)
        output.logits[..., stops] = -1e9

    handle = hosted.lanes[0].model.register_forward_hook(forbid_stops)
    yield
    handle.remove()


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place_at_once(server: Running, stream: bool) -> None:
    connection = start_long_answer(server, stream=stream)
    until(lambda: server.engine.num_running == 1)
    hung_up = server.engine.metrics.value("cancelled_total")

    connection.close()

    until(lambda: server.engine.num_running == 0, timeout_seconds=4)  # the answer takes 9
    assert server.engine.metrics.value("cancelled_total") == hung_up + 1


@pytest.mark.usefixtures("slow")
def test_a_crowd_is_told_to_come_back_later(locked: Running) -> None:
    crowd = [start_long_answer(locked, stream=True)]
    until(lambda: locked.engine.num_running == 1)  # or the next one finds the queue full
    crowd.append(start_long_answer(locked, stream=True))
    until(lambda: locked.engine.num_running == 2)
    crowd.append(start_long_answer(locked, stream=True))
    until(lambda: locked.engine.num_waiting == 1)

    where = urlsplit(locked.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(chat(locked.base)), headers)
    response = connection.getresponse()

    assert response.status == 429
    assert int(response.getheader("Retry-After") or "") >= 1
    assert json.loads(response.read())["error"]["type"] == "rate_limit_error"
    connection.close()
    for each in crowd:
        each.close()
    until(lambda: locked.engine.num_running + locked.engine.num_waiting == 0)


# ---- what is kept to itself ---------------------------------------------------------------


def test_logs_and_metrics_hold_no_prompt_path_or_key(
    locked: Running, hosted: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    secret = TURNS[0][1]
    with caplog.at_level(logging.DEBUG, logger="glmtune"):
        key = {"Authorization": f"Bearer {KEY}"}
        ask(locked.url, "/v1/chat/completions", chat("one", secret, max_tokens=2), **key)
        ask(locked.url, f"/{secret.encode().hex()}", **key)
        ask(locked.url, "/v1/models/etc/passwd", **key)
        where = urlsplit(locked.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
        connection.request("GET", "/metrics", headers=key)
        metrics = connection.getresponse().read().decode()
        connection.close()
    log = caplog.text

    assert "/v1/chat/completions 200 in" in log
    for text in (log, metrics):
        for kept in (secret, secret.encode().hex(), KEY, "passwd", str(hosted.adapters["one"])):
            assert kept not in text
    assert 'glmtune_requests_total{endpoint="/v1/chat/completions",status="200"}' in metrics
    assert "glmtune_first_token_seconds_bucket" in metrics
    listed = json.dumps(ask(locked.url, "/v1/models", Authorization=f"Bearer {KEY}")[1])
    assert str(hosted.adapters["one"].parent) not in listed


def test_the_page_is_served_with_a_policy_that_forbids_everything_foreign(server: Running) -> None:
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
    for path in ("/", "/page.js", "/page.css"):
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read().decode()
        policy = response.getheader("Content-Security-Policy") or ""
        assert response.status == 200
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "innerHTML" not in content
        assert "http://" not in content
    connection.close()


# ---- starting -----------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named() -> None:
    with bind(Address(port=0)) as taken, pytest.raises(OutputError, match="cannot listen there"):
        bind(Address(port=taken.getsockname()[1]))


def test_the_first_lines_say_where_it_is_and_how_vllm_takes_the_adapter(hosted: Hosted) -> None:
    lines = [*describe(hosted, "127.0.0.1", 8000, Access())]

    assert lines[0].startswith("Page: http://127.0.0.1:8000   API: http://127.0.0.1:8000/v1")
    assert lines[1].endswith(f"glmtune export {hosted.adapters['one']} --to vllm -o for-vllm")
    [_, warning, _] = describe(hosted, "0.0.0.0", 8000, Access())
    assert warning == "Everybody who can reach 0.0.0.0 may use it."


def test_places_are_fewer_where_the_cache_would_not_fit(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import glmtune.use.serve.run as module
    from glmtune.machine import HostMemory

    row = 2 * 2 * 2 * 16 * 4 * 512  # keys and values, 2 layers, 2 heads, 16 wide, float32
    monkeypatch.setattr(module, "host_memory", lambda: HostMemory(10**9, 20 * row))

    limits = fit_limits(hosted, Limits(max_batch=32, num_kept=16, max_length=8192))

    assert (limits.max_length, limits.max_batch, limits.num_kept) == (512, 11, 3)
