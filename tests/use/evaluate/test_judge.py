"""A judge behind a loopback server: both orders, kept verdicts, and servers that do not answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import DataError
from glmtune.use.evaluate import judge as judging
from glmtune.use.evaluate.answers import AnswersTask, choose_metrics
from glmtune.use.evaluate.judge import Judge, add_verdicts
from glmtune.use.evaluate.kept import KeptAnswers, Line
from glmtune.use.evaluate.results import Evaluation
from glmtune.use.evaluate.run import kept_beside
from glmtune.use.generate import Sampling
from glmtune.use.predict import Question


class Server(ThreadingHTTPServer):
    """Prefers the longer answer; is busy or broken when told so."""

    statuses: list[int]
    asked: list[dict[str, Any]]
    reply: str | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        text = body["messages"][1]["content"]
        a = text.partition("[Answer A]\n")[2].partition("\n\n[Answer B]\n")[0]
        b = text.partition("[Answer B]\n")[2]
        letter = (
            "A" if len(a) > len(b) or "always first" in text else "B" if len(b) > len(a) else "C"
        )
        content = f"[[B]] would be wrong. [[{letter}]]"
        reply = self.server.reply or json.dumps({"choices": [{"message": {"content": content}}]})
        self.send_response(status)
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.statuses, server.asked = [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1/"


def test_a_side_wins_only_in_both_orders(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    judge = Judge(url_of(server), "m")

    assert judge.compare("q", "long answer", "short") == "win"
    assert judge.compare("q", "short", "long answer") == "loss"
    assert judge.compare("q", "same", "size") == "tie"
    assert judge.compare("always first", "a", "b") == "tie"
    first = server.asked[0]
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer k")
    assert (first["model"], first["temperature"]) == ("m", 0)


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "WAIT_SECONDS", (0.0, 0.0))
    judge = Judge(url_of(server), "m")
    server.statuses = [429, 503]
    assert judge.compare("q", "long answer", "short") == "win"
    server.statuses = [500] * 3
    with pytest.raises(DataError, match="does not answer: HTTP 500"):
        judge.compare("q", "a", "b")
    server.asked.clear()
    server.statuses = [401]
    with pytest.raises(DataError, match=r"HTTP 401.*OPENAI_API_KEY"):
        judge.compare("q", "a", "b")
    assert len(server.asked) == 1
    server.reply = "<html>"
    with pytest.raises(DataError, match="expected a chat completion, got '<html>'"):
        judge.compare("q", "a", "b")
    with pytest.raises(DataError, match="expected the URL of an OpenAI-compatible API"):
        Judge("localhost:8000", "m")
    monkeypatch.setattr(judging, "WAIT_SECONDS", ())
    with pytest.raises(DataError, match="the judge does not answer"):
        Judge("http://127.0.0.1:9/v1", "m").compare("q", "a", "b")


def test_verdicts_are_scored_and_kept(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    answers = KeptAnswers(kept_beside(output), {"model": "m"})
    list(answers.add(Line(row=row, answer="long answer") for row in range(1, 13)))
    questions = {row: Question(row, "f", row, None, "q", (1,), "short") for row in range(1, 13)}
    template: Any = None
    task = AnswersTask(
        questions, choose_metrics(["exact"]), template, Sampling(temperature=0), None, ("f",)
    )
    result = Evaluation(
        task="answers", model="m", data=("f",), num_rows=12, scores={}, answers=answers.path.name
    )

    judged = add_verdicts(Judge(url_of(server), "m"), task, result, output)

    assert (judged.scores["judge"].value, judged.scores["judge"].num_rows) == (100, 12)
    assert judged.differences["judge"].verdict == "better"
    assert "12 better, 0 worse" in judged.notes[-1]
    assert output.is_file()
    asked = len(server.asked)
    assert asked == 24
    again = add_verdicts(Judge(url_of(server), "m"), task, result, output)
    assert (again, len(server.asked)) == (judged, asked)
