"""Commands that outlive the board: started, read again, stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.cli.board.conftest import until

from glmtune.cli.board.folder import BoardError, StartFolder
from glmtune.cli.board.jobs import JOB, Job, Jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(StartFolder(tmp_path.resolve()))


def begin(jobs: Jobs, *command: str) -> Job:
    return jobs.begin("merge", jobs.prepare("merge"), command, "out/a")


def test_a_command_leaves_its_output_and_its_exit_code(jobs: Jobs, tmp_path: Path) -> None:
    good, bad = begin(jobs, "--version"), begin(jobs, "report", "nothing")
    until(lambda: good.state != "running" and bad.state != "running")

    assert (good.state, good.exit_code) == ("succeeded", 0)
    assert good.log().startswith("glmtune ")
    assert (bad.state, bad.exit_code) == ("failed", 1)
    assert "so it is not the folder of a run" in bad.log()
    again = Jobs(StartFolder(tmp_path.resolve()))  # of a board that was started later
    assert [job.id for job in again.all()] == [bad.id, good.id]
    assert again.find(good.id).state == "succeeded"
    assert (tmp_path / ".glmtune-board" / ".gitignore").read_text() == "*\n"
    with pytest.raises(BoardError, match="does not run any more"):
        again.stop(good)
    with pytest.raises(BoardError, match="there is no job 'x'"):
        again.find("x")


def test_a_command_is_interrupted_as_by_ctrl_c_by_a_later_board(jobs: Jobs, tmp_path: Path) -> None:
    job = begin(jobs, "board", ".", "--port", "0")  # it runs until it is stopped
    until(lambda: "Board: http" in job.log())
    [child] = psutil.Process(job.record.pid).children()
    assert "GLMTUNE_API_KEY" not in child.environ()

    later = Jobs(StartFolder(tmp_path.resolve()))
    later.stop(later.find(job.id))
    until(lambda: job.state != "running")

    assert job.state in ("stopped", "succeeded")
    assert not child.is_running()


def test_a_command_can_be_killed(jobs: Jobs) -> None:
    job = begin(jobs, "board", ".", "--port", "0")
    until(lambda: "Board: http" in job.log())

    jobs.stop(job, at_once=True)
    until(lambda: job.state != "running")

    assert (job.state, job.exit_code) == ("failed", -signal.SIGKILL)


def test_a_later_process_with_the_same_number_is_not_the_command(jobs: Jobs) -> None:
    job = begin(jobs, "--version")
    until(lambda: job.state == "succeeded")
    (job.folder / "exit").unlink()
    record = json.loads((job.folder / JOB).read_text())
    record |= {"pid": psutil.Process().pid, "process_started": 1.0}
    (job.folder / JOB).write_text(json.dumps(record))

    assert jobs.find(job.id).state == "lost"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "[" * 100_000, '{"pid": 1e999}'])
def test_a_damaged_record_is_no_job(jobs: Jobs, text: str) -> None:
    folder = jobs.prepare("merge")
    (folder / JOB).write_text(text)

    assert jobs.all() == []


def test_a_log_shows_what_was_seen_last(jobs: Jobs) -> None:
    job = begin(jobs, "--version")
    until(lambda: job.state == "succeeded")
    (job.folder / "log.txt").write_bytes(b"10 %\r50 %\r100 %\r\nnext \xff\n")
    assert job.log() == "100 %\nnext �\n"
    (job.folder / "log.txt").write_bytes(b"x" * 100 + b"\n" + b"line\n" * 20_000)
    assert job.log().startswith("line\n")
    assert len(job.log()) < 70_000


def test_the_chat_ends_with_the_board_even_if_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "glmtune.cli.board.leashed", "board", ".", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Board: http")

    process.stdin.close()  # as the system does with what a killed process has open

    assert process.wait(timeout=30) in (0, 130)
    process.stdout.close()
