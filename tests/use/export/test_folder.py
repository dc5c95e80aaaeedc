"""A new folder is complete under its name, or not there; nothing that existed is lost."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from glmtune.errors import OutputError
from glmtune.files import before_writing, write_atomically
from glmtune.use.export.folder import ProofError, check_space, new_folder, write_report

Usage = namedtuple("Usage", "total used free")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_halfway(target: Path, error: BaseException) -> None:
    with new_folder(target) as partial:
        (partial / "weights").write_text("half", "utf-8")
        raise error


def test_the_name_appears_when_the_folder_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as partial:
        (partial / "weights").write_text("all", "utf-8")
        assert names(tmp_path) == ["out.partial"]

    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "weights").read_text("utf-8") == "all"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), SystemExit(1)])
def test_an_interrupt_or_an_error_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        fail_halfway(tmp_path / "out", error)

    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing_and_says_so(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"out: the disk is full.*-o"):
        fail_halfway(tmp_path / "out", error)

    assert names(tmp_path) == []


def test_a_target_that_exists_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("dear", "utf-8")

    with (
        pytest.raises(OutputError, match=r"already exists.*another name"),
        new_folder(tmp_path / "out"),
    ):
        raise AssertionError

    assert (tmp_path / "out" / "mine").read_text("utf-8") == "dear"


def test_what_a_killed_export_left_is_removed_and_what_others_left_is_not(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    write_report(partial, {"status": "unfinished"})
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]

    other = tmp_path / "other.partial"
    other.mkdir()
    (other / "mine").write_text("dear", "utf-8")
    with pytest.raises(OutputError, match="in the way"), new_folder(tmp_path / "other"):
        raise AssertionError
    assert (other / "mine").read_text("utf-8") == "dear"


def test_an_export_that_was_killed_before_its_first_word_is_removed_too(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    for content in (None, b""):
        partial.mkdir()
        if content is not None:
            (partial / "export.json").write_bytes(content)
        with pytest.raises(OutputError, match="in the way"), new_folder(tmp_path / "out"):
            raise AssertionError  # another export may have begun this moment
        os.utime(partial, (1e9, 1e9))

        with new_folder(tmp_path / "out"):
            pass

        assert names(tmp_path) == ["out"]
        shutil.rmtree(tmp_path / "out")


def test_a_failed_proof_keeps_the_folder_under_another_name(tmp_path: Path) -> None:
    for expected in ("out.failed", "out.failed-2"):
        with pytest.raises(ProofError, match=f"differs.*{expected}"), new_folder(tmp_path / "out"):
            raise ProofError("it differs.")
        assert expected in names(tmp_path)

    assert names(tmp_path) == ["out.failed", "out.failed-2"]


def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 2**20))

    check_space(tmp_path / "out", 2**20)
    with pytest.raises(OutputError, match=r"2\.00 MiB would be written.*1\.00 MiB free"):
        check_space(tmp_path / "out", 2**21)


@pytest.mark.parametrize("name", ["rows.json/out", "a" * 300, "rows.json/a/out"])
def test_a_name_under_which_no_folder_can_be_made_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]", "utf-8")

    with (
        pytest.raises(OutputError, match=r"no folder can be made there.*another name with -o"),
        new_folder(tmp_path / name),
    ):
        raise AssertionError

    assert names(tmp_path) == ["rows.json"]


def test_a_broken_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("I/O error (os error 5)")):
        with (
            pytest.raises(
                OutputError, match=r"could not be completed.*What was written is removed"
            ),
            new_folder(tmp_path / "out"),
        ):
            raise error
        assert names(tmp_path) == []


WRITING = """\
import sys
from pathlib import Path
from glmtune.use.export.folder import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    print("writing", flush=True)
    sys.stdin.read()
    (folder / "weights").write_text("whole", "utf-8")
"""


def test_a_second_export_leaves_a_running_one_alone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITING, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "writing\n"
        with pytest.raises(OutputError, match="at this moment"), new_folder(tmp_path / "out"):
            raise AssertionError
        first.communicate("")

    assert first.returncode == 0
    assert (tmp_path / "out" / "weights").read_text("utf-8") == "whole"


def test_a_text_that_finds_the_disk_full_gives_advice_for_an_export(tmp_path: Path) -> None:
    def fail(operation: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="the disk is full") as caught:  # noqa: PT012
        with new_folder(tmp_path / "out") as folder:
            token = before_writing.set(fail)
            try:
                write_atomically(folder / "chat_template.jinja", "text")
            finally:
                before_writing.reset(token)

    assert "--resume" not in str(caught.value)
    assert "with -o" in str(caught.value)
    assert names(tmp_path) == []
