"""Chat with what a run made: `glmtune serve` in a process of its own, reached through the board.

    browser  --/chat/v1/...-->  board  --/v1/... with a key of its own-->  glmtune serve RUN

Through the board it has the same address, key and port, so one forwarded port is enough. The model
is in the memory of that process, which ends with the board or when another run is opened.
"""

import contextlib
import http.client
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from glmtune.cli.board.actions import OfRun
from glmtune.cli.board.bodies import Nothing
from glmtune.cli.board.folder import STATE, StartFolder
from glmtune.cli.board.runs import Runs
from glmtune.errors import OutputError

ANSWER_SECONDS = 600.0  # of a request, as the server has it
MOST_BODY = 4 * 2**20
STOP_SECONDS = 10.0
PASSED_ON = ("content-type", "content-security-policy", "cache-control", "retry-after")
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@dataclass(frozen=True, slots=True)
class Served:
    """A server that was started.

    Attributes:
        run: the folder of the run that it answers with.
        process: it.
        key: that its requests need.
        log: what it prints.
    """

    run: str
    process: subprocess.Popen[bytes]
    key: str
    log: Path

    @property
    def port(self) -> int | None:
        """Where it listens; None while the model is loaded."""
        found = re.search(r"^Page: http://127\.0\.0\.1:(\d+)", self.text(), re.MULTILINE)
        return int(found[1]) if found else None

    def text(self) -> str:
        """Return the end of what it has printed."""
        with contextlib.suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace")[-20_000:]
        return ""


class Chat:
    """At most one server, of the run that was opened last.

    Args:
        start: the start folder.
        runs: finds runs.
    """

    def __init__(self, start: StartFolder, runs: Runs) -> None:
        self._start, self._runs = start, runs
        self._served: Served | None = None
        self._turn = threading.Lock()

    def open(self, asked: OfRun) -> Any:
        """Start a server for what a run made, unless it answers already.

        Raises:
            BoardError: there is no such run.
            OutputError: the process cannot be started.
        """
        path = self._runs.folder(asked.path)
        name = self._start.name(path)
        with self._turn:
            served = self._served
            if served is None or served.run != name or served.process.poll() is not None:
                self._end()
                self._served = self._begin(path)
        return self.state(Nothing())

    def state(self, asked: Nothing) -> Any:
        """Say which run answers, if any."""
        served = self._served
        if served is None:
            return {"run": None, "state": "closed"}
        if served.process.poll() is not None:
            _, mark, problem = served.text().rpartition("error: ")
            text = problem.strip() if mark else served.text()[-2000:]
            return {"run": served.run, "state": "failed", "problem": text}
        return {"run": served.run, "state": "loading" if served.port is None else "open"}

    def close(self, asked: Nothing) -> Any:
        """End the server, which frees its memory."""
        with self._turn:
            self._end()
        return self.state(asked)

    def end(self) -> None:
        """End the server with the board."""
        self._end()

    def _begin(self, path: Path) -> Served:
        folder = self._start.root / STATE
        log, key = folder / "chat.log", secrets.token_urlsafe(32)
        command = ["serve", self._start.word(path), "--port", "0"]
        environment = os.environ | {"GLMTUNE_API_KEY": key, "PYTHONUNBUFFERED": "1"}
        try:
            folder.mkdir(exist_ok=True)
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "glmtune.cli.board.leashed", *command],
                    cwd=self._start.root,
                    env=environment,
                    stdin=subprocess.PIPE,  # closes with this process
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            raise OutputError(f"the server cannot be started: {error.strerror}.") from error
        return Served(self._start.name(path), process, key, log)

    def _end(self) -> None:
        if self._served is None:
            return
        process, self._served = self._served.process, None
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    async def forward(self, request: Request) -> Response:
        """Pass a request on to the server, and its answer back as it is written."""
        served = self._served
        port = None if served is None or served.process.poll() is not None else served.port
        if served is None or port is None:
            message = "no run is opened for a chat. Open one in the tab Runs."
            return JSONResponse({"error": {"message": message}}, 503)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST_BODY:
                message = f"the request has more than {MOST_BODY:,} bytes. Send less."
                return JSONResponse({"error": {"message": message}}, 413)
        headers = {
            "Host": f"127.0.0.1:{port}",
            "Content-Type": request.headers.get("content-type", "application/json"),
            "Authorization": f"Bearer {served.key}",
        }
        path = "/" + request.path_params["path"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        try:
            answer = await run_in_threadpool(
                _ask, connection, request.method, path, bytes(body), headers
            )
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            message = "the server of the run does not answer. Open the run again in the tab Runs."
            return JSONResponse({"error": {"message": message}}, 502)
        shown = {name: value for name in PASSED_ON if (value := answer.getheader(name)) is not None}
        return StreamingResponse(
            _parts(answer, connection), status_code=answer.status, headers={**HEADERS, **shown}
        )


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
) -> http.client.HTTPResponse:
    connection.request(method, path, body or None, dict(headers))
    return connection.getresponse()


async def _parts(
    answer: http.client.HTTPResponse, connection: http.client.HTTPConnection
) -> AsyncIterator[bytes]:
    """Yield an answer as it comes; a browser that leaves closes the connection, and so its row."""
    try:
        while part := await run_in_threadpool(answer.read1, 65_536):
            yield part
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()
