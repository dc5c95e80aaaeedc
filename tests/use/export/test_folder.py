"""A new folder is complete under its name, or not there; nothing that existed is lost."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from glmtune.errors import OutputError
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
