"""A board on a real socket, over a folder with rows."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glmtune.use.serve.access import Access, Address, bind, check_access

ROWS = [
    {"instruction": f"{number} 加 {number} 等于几？", "input": "", "output": f"等于 {2 * number}。"}
    for number in range(24)
]


@dataclass
class Board:
    """A board that answers at `url`, over `folder`."""

    url: str
    folder: Path

    def ask(self, name: str, body: Any = None, **headers: str) -> Any:
        """What a function returns; an error of the board is an AssertionError."""
        status, answer = self.send(f"/api/{name}", body if body is not None else {}, **headers)
        assert status == 200, answer
        return answer

    def refusal(self, name: str, body: Any = None) -> tuple[int, str]:
        """The status and the message of a refusal."""
        status, answer = self.send(f"/api/{name}", body if body is not None else {})
        assert status != 200, answer
        return status, answer["error"]

    def send(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request as a page does; the status, and the JSON or the text."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        request = urllib.request.Request(self.url + path, data, named)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                content, status = response.read(), response.status
        except urllib.error.HTTPError as error:
            content, status = error.read(), error.code
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode()


@contextmanager
def running(folder: Path, access: Access | None = None) -> Iterator[Board]:
    """Serve a board on a free port of this machine, in a thread of this process."""
    import uvicorn

    from glmtune.cli.board.app import make_app
    from glmtune.cli.board.folder import StartFolder

    address = Address(port=0)
    bound = bind(address)
    app = make_app(StartFolder(folder.resolve()), check_access(address, access or Access()))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Board(f"http://127.0.0.1:{bound.getsockname()[1]}", folder)
    finally:
        app.state.end_waiting()
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    write_rows(tmp_path / "rows.jsonl")
    with running(tmp_path) as started:
        yield started


def write_rows(path: Path, rows: list[dict[str, str]] | None = None) -> None:
    """Write rows as JSON Lines."""
    lines = (json.dumps(row, ensure_ascii=False) for row in (ROWS if rows is None else rows))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def until(condition: Any, timeout_seconds: float = 60) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)
