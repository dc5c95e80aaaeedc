"""Files and folders are written completely or not at all, and read within bounds."""

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors.torch import save_file

from glmtune.errors import CheckpointError, OutputError
from glmtune.files import (
    MAX_JSON_BYTES,
    before_writing,
    explain_write_error,
    read_json_as,
    remove_folder,
    remove_leftovers,
    sha256_of_file,
    sha256_of_text,
    write_atomically,
    write_error,
    written_folder,
)

# What a full disk looks like through each library that writes a checkpoint's files.
FULL_DISKS = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4544 vs 4438"),
]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with written_folder(tmp_path / "done") as partial:
        (partial / "a.txt").write_text("1")
        assert not (tmp_path / "done").exists()

    assert (tmp_path / "done" / "a.txt").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


@pytest.mark.parametrize("error", FULL_DISKS, ids=["file", "safetensors", "torch"])
def test_a_full_disk_leaves_the_older_folder_as_it_was(tmp_path: Path, error: Exception) -> None:
    with written_folder(tmp_path / "x") as partial:
        (partial / "a.txt").write_text("old")

    with pytest.raises(OutputError, match="the disk is full"):  # noqa: PT012
        with written_folder(tmp_path / "x") as partial:
            (partial / "a.txt").write_text("half")
            raise error

    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permissions of this kind")
def test_other_users_may_read_the_weights_if_they_may_read_any_new_file(tmp_path: Path) -> None:
    with written_folder(tmp_path / "x") as partial:
        save_file({"a": torch.zeros(2)}, partial / "weights.safetensors")
        (partial / "a.txt").write_text("text")

    modes = {path.stat().st_mode for path in (tmp_path / "x").iterdir()}
    assert len(modes) == 1


def test_ctrl_c_leaves_no_partial_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_folder(tmp_path / "x"):
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(OutputError, match="could not be written"):
        write_atomically(tmp_path / "file" / "x", "text")


def test_a_new_folder_replaces_an_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with written_folder(tmp_path / "x") as partial:
            (partial / f"{text}.txt").write_text(text)

    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new.txt"]


def test_a_file_and_its_text_have_the_same_checksum(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", "你好\n")

    expected = "4e0826721642ed8e"
    assert sha256_of_file(tmp_path / "x") == sha256_of_text("你好\n")
    assert sha256_of_text("你好\n").startswith(expected)


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    sides: list[PositiveInt] | PositiveInt
    name: str = ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sides": [4, 0]}', r"sides.1 is 0, expected a number greater than 0. Restore the file"),
        ('{"sides": "4"}', "sides is '4', expected a valid"),
        ('{"sides": true}', "sides is True, expected a valid"),
        ('{"name": "x"}', "expected the key sides, which is not there"),
        ('{"sides": 4, "name": 5}', "name is 5, expected a valid string"),
        ("[]", "expected a JSON object, got a list"),
        ("", r"expected a JSON object, but it cannot be read as JSON \("),
        ('{"a":' * 10_000, "expected a JSON object, but it is nested too deeply"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than 64 levels deep"),
        ('{"sides": 4, "\\ud800": 1}', r"'\\ud800' has half a surrogate pair"),
        (f'{{"sides": {"9" * 5000}}}', "cannot be read as JSON"),
        (" " * MAX_JSON_BYTES + "{}", "it has 16,777,218 bytes, and at most 16,777,216 are read"),
    ],
)
def test_json_from_outside_is_typed_and_bounded_where_it_is_read(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "shape.json").write_text(content)

    with pytest.raises(CheckpointError, match=message) as caught:
        read_json_as(tmp_path / "shape.json", Shape)
    assert "shape.json: " in str(caught.value)


def test_what_a_file_holds_besides_is_kept(tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text('{"sides": 4, "color": "\\u84dd"}')

    shape, content = read_json_as(tmp_path / "shape.json", Shape)

    assert (shape.sides, content["color"]) == (4, "蓝")


def test_what_a_killed_process_left_is_removed_and_a_replaced_folder_comes_back(
    tmp_path: Path,
) -> None:
    for name in (".checkpoint-4.ab12.partial", ".checkpoint-2.cd34.old", ".checkpoint-6.ef56.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / ".recipe.yaml.ab12.partial").write_text("half")
    (tmp_path / "checkpoint-2").mkdir()  # the new one was renamed, and the old one not yet deleted
    (tmp_path / ".hidden").write_text("mine")

    remove_leftovers(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".hidden",
        "checkpoint-2",
        "checkpoint-6",
    ]
    assert (tmp_path / "checkpoint-6" / "a.txt").read_text() == ".checkpoint-6.ef56.old"


def test_two_writers_of_one_folder_do_not_touch_each_others_files(tmp_path: Path) -> None:
    with written_folder(tmp_path / "x") as one, written_folder(tmp_path / "x") as other:
        (one / "a.txt").write_text("one")
        (other / "b.txt").write_text("other")

    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_deleted_never_lies_half_deleted_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "a.txt").write_text("whole")

    def refuse(operation: str, path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    token = before_writing.set(refuse)
    with pytest.raises(OutputError, match=r"checkpoint-2: could not be written, permission denied"):
        remove_folder(folder)
    before_writing.reset(token)
    assert (folder / "a.txt").read_text() == "whole"

    remove_folder(folder)  # renames it, then deletes it

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error. Check the disk, then try"),
        (RuntimeError("I/O error: Input/output error (os error 5)"), "Input/output error. Check"),
        (RuntimeError("I/O error: File too large (os error 27)"), "File too large. Check the disk"),
        (RuntimeError("Disk quota exceeded (os error 122)"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "permission denied. Choose another --output."),
    ],
)
def test_a_failed_write_is_explained_whichever_library_wrote(
    error: Exception, expected: str, tmp_path: Path
) -> None:
    why = write_error(error)
    assert why is not None

    message = explain_write_error(tmp_path / "x", why, again="try again", elsewhere="--output")

    assert message.startswith(f"{tmp_path / 'x'}: could not be written")
    assert expected in message


def test_other_errors_are_no_failed_writes() -> None:
    assert write_error(RuntimeError("size mismatch for layers.0")) is None
