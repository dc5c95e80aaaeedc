"""Runs, read from their files."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.cli.board.conftest import Board, running, until

from glmtune import messages
from glmtune.cli.board import runs
from glmtune.prove.proof import PROOFS
from glmtune.recipe.reading import load_recipe
from glmtune.train.run_folder import LOCK, locked, process_of


def make_run(folder: Path, losses: list[float], **facts: object) -> Path:
    """The files of a run that was interrupted, or is in progress."""
    folder.mkdir(parents=True)
    keys = [f"output.dir={json.dumps(folder.name)}", "training.num_train_epochs=2"]
    (folder / "recipe.yaml").write_text(load_recipe("chatglm3-lora", keys).to_yaml())
    add_lines(folder, losses, 1)
    return folder


def add_lines(folder: Path, losses: list[float], first: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step, loss in enumerate(losses, start=first):
            line = {"step": step, "epoch": step / 10, "loss": loss, "learning_rate": 1e-4}
            file.write(json.dumps(line) + "\n")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "out" / "a", [3.0, 2.0])
    make_run(folder / "out" / "b", [3.0, 2.5, 2.2])
    (folder / "out" / "a" / "checkpoint-2").mkdir()
    make_run(folder / "out" / "a" / "checkpoint-2" / "inside", [1.0])
    make_run(folder / ".hidden" / "run", [1.0])
    (folder / "out" / "c").mkdir()
    (folder / "out" / "c" / "recipe.yaml").write_text("- no recipe")
    (folder / "out" / "c" / "metrics.jsonl").write_text("damaged")
    with running(folder) as started:
        yield started


def test_runs_are_found_where_they_are(board: Board) -> None:
    runs = {run["path"]: run for run in board.ask("runs")["runs"]}

    assert set(runs) == {"out/a", "out/b", "out/c"}
    assert runs["out/b"] | {"state": "stopped", "step": 3, "loss": 2.2} == runs["out/b"]
    assert runs["out/b"]["title"] == "zai-org/chatglm3-6b · lora r=16"
    assert (runs["out/a"]["is_usable"], runs["out/a"]["has_report"]) == (False, False)


def test_a_page_is_sent_only_the_metrics_that_it_lacks(board: Board) -> None:
    first = board.ask("run", {"path": "out/a"})
    assert [line["step"] for line in first["lines"]] == [1, 2]
    assert board.ask("run", {"path": "out/a", "have": first["mark"]})["lines"] == []

    add_lines(board.folder / "out" / "a", [1.5], 3)
    second = board.ask("run", {"path": "out/a", "have": first["mark"]})
    assert [line["step"] for line in second["lines"]] == [3]

    recipe = board.folder / "out" / "a" / "recipe.yaml"
    os.utime(recipe, ns=(1, 1))  # as a resumed run writes it again
    third = board.ask("run", {"path": "out/a", "have": second["mark"]})
    assert [line["step"] for line in third["lines"]] == [1, 2, 3]
    for nonsense in ("x", ":", "1:9999999999999", f"{first['mark']}0"):
        assert len(board.ask("run", {"path": "out/a", "have": nonsense})["lines"]) == 3


def test_a_run_that_is_locked_by_a_living_process_runs(board: Board) -> None:
    folder = board.folder / "out" / "b"
    os.utime(folder / "recipe.yaml", ns=(10**9, 10**9))
    os.utime(folder / "metrics.jsonl", ns=(4 * 10**9, 4 * 10**9))
    with locked(folder):
        shown = board.ask("run", {"path": "out/b"})
        assert shown["process"] == psutil.Process().pid
        assert board.refusal("stop", {"path": "out/b"})[1].startswith("it was started elsewhere")

    assert shown["state"] == "running"
    # 3 steps took 3 s; an epoch has 10 steps, and there are 2.
    assert shown["progress"] == {"step": 3, "num_steps": 20, "seconds_left": 17.0}
    assert board.ask("run", {"path": "out/b"})["state"] == "stopped"
    assert board.refusal("stop", {"path": "out/b"}) == (
        409, "it does not run any more. Reload the page.",
    )  # fmt: skip


def test_a_lock_of_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    own = psutil.Process().pid
    others = "process x on y", "process 999999999 on h, since 1", "\ud800", f"process {own}"
    for text in ("", *others):
        (tmp_path / LOCK).write_bytes(text.encode(errors="surrogatepass"))
        assert process_of(tmp_path) is None
    (tmp_path / LOCK).write_text(f"process {own} on {socket.gethostname()}, since 10:00:00")
    assert process_of(tmp_path) == own
    os.utime(tmp_path / LOCK, (1, 1))  # written before this process began
    assert process_of(tmp_path) is None


def test_runs_are_compared_as_the_command_compares_them(board: Board) -> None:
    found = board.ask("compare", {"paths": ["out/a", "out/b"]})

    assert found["names"] == ["a", "b"]
    steps = next(row for row in found["tables"]["runs"] if row["label"] == "steps")
    assert (steps["values"], steps["differs"]) == (["3", "3"], False)
    assert board.refusal("compare", {"paths": ["out/a", "out/a"]})[0] == 422
    assert board.refusal("compare", {"paths": ["out/a"]})[0] == 400


@pytest.mark.parametrize("name", ["run", "resume", "open-chat", "evaluate", "export"])
def test_a_folder_without_a_run_is_refused(board: Board, name: str) -> None:
    more: dict[str, Any] = {
        "evaluate": {"rows": "r.json"},
        "export": {"output": "o", "to": "merged"},
    }

    assert board.refusal(name, {"path": "out", **more.get(name, {})}) == (
        404, "out: there is no run in it. Reload the page.",
    )  # fmt: skip
    assert board.refusal(name, {"path": "../x", **more.get(name, {})})[0] == 403


def test_a_result_is_written_only_below_the_folder_and_never_over_something(board: Board) -> None:
    for output, status in (("../out", 403), ("out/b", 409), (".x", 400), ("", 400)):
        body = {"path": "out/a", "to": "merged", "output": output}
        assert board.refusal("export", body)[0] == status
    evil = {"path": "out/a", "rows": "rows.jsonl", "metrics": ["evil.py:run"]}
    assert "expected the name of a metric" in board.refusal("evaluate", evil)[1]
    assert board.ask("jobs") == {"jobs": []}


def test_a_report_can_neither_reach_the_board_nor_load_anything(board: Board) -> None:
    import urllib.request

    assert board.send("/report/out/a")[0] == 404
    (board.folder / "out" / "a" / "report.html").write_text("<script>fetch('/api/files')</script>")
    with urllib.request.urlopen(f"{board.url}/report/out/a") as response:
        policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none';")
    assert board.send("/report/../../etc")[0] == 403
    os.remove(board.folder / "out" / "a" / "report.html")
    os.symlink("/etc/hostname", board.folder / "out" / "a" / "report.html")
    assert board.send("/report/out/a")[0] in (403, 404)


def test_the_chat_says_that_no_run_is_opened(board: Board) -> None:
    assert board.ask("chat") == {"run": None, "state": "closed"}
    assert board.send("/chat")[0] == 503  # of /chat/
    status, answer = board.send("/chat/v1/models")
    assert (status, "Open one in the tab Runs" in answer["error"]["message"]) == (503, True)


def test_a_resumed_run_has_as_many_processes_as_before(tmp_path: Path) -> None:
    from glmtune.cli.board.actions import Actions, OfRun
    from glmtune.cli.board.folder import StartFolder
    from glmtune.cli.board.jobs import Jobs
    from glmtune.cli.board.runs import Runs

    start = StartFolder(tmp_path.resolve())
    make_run(tmp_path / "moved" / "a", [2.0])
    jobs = Jobs(start)
    before = jobs.begin(  # a command that ends at once
        "train", jobs.prepare("train"), ["--version", "--nproc", "2"], "moved/a"
    )
    until(lambda: before.state != "running")

    resumed = Actions(start, jobs, Runs(start, jobs)).resume(OfRun(path="moved/a"))
    [job] = [each for each in jobs.all() if each.id == resumed["job"]["id"]]
    jobs.stop(job)
    until(lambda: job.state != "running")

    # Its recipe says output.dir=a, where it was before.
    assert job.record.command == (
        "train", "moved/a/recipe.yaml", 'output.dir="moved/a"', "--nproc", "2", "--resume",
    )  # fmt: skip
    assert job.record.first_step == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_proofs_are_read_from_a_log_in_either_language(
    lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(messages.VARIABLE, "en")  # and is put back after the test
    messages.choose(lang)
    said = [f"proof: {name}: passed (to the last bit of a score)" for name in PROOFS]
    log = "\n".join(messages.translate(line) for line in (*said, "proof: x: not run", "step 1/2"))

    *found, last = runs._logged_proofs(log)

    assert [proof.name for proof in found] == list(PROOFS)
    assert {proof.verdict for proof in found} == {"passed"}
    assert (last.name, last.verdict, last.detail) == ("x", "not run", "")
