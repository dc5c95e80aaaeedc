"""What the board reads and writes stays below the folder that it was started in."""

import os
from pathlib import Path

import pytest

from glmtune.cli.board.folder import BoardError, StartFolder


@pytest.fixture
def start(tmp_path: Path) -> StartFolder:
    root = tmp_path / "start"
    (root / "below").mkdir(parents=True)
    (root / "rows.json").write_text("[]")
    (root / ".hidden").write_text("secret")
    (tmp_path / "outside.json").write_text("secret")
    os.symlink(tmp_path, root / "link-out")
    os.symlink(tmp_path / "outside.json", root / "file-out.json")
    os.symlink(root / "below", root / "link-in")
    os.symlink(root / "loop", root / "loop")
    return StartFolder(root.resolve())


@pytest.mark.parametrize(
    "path",
    ["..", "../outside.json", "below/../../outside.json", "/etc/passwd", "link-out/outside.json",
     "file-out.json"],
)  # fmt: skip
def test_a_path_that_leads_out_is_refused(start: StartFolder, path: str) -> None:
    with pytest.raises(BoardError, match="is not below") as caught:
        start.inside(path)
    assert caught.value.status == 403


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300, "x" * 5000, "a/" * 3000])
def test_what_is_no_path_is_refused_without_a_traceback(start: StartFolder, path: str) -> None:
    with pytest.raises(BoardError):
        start.list(path)


def test_a_listing_shows_what_is_below_and_not_hidden(start: StartFolder) -> None:
    listed = start.list("")

    assert (listed["path"], listed["folders"]) == ("", ["below", "link-in"])
    assert [file["name"] for file in listed["files"]] == ["rows.json"]
    assert start.list("link-in")["path"] == "below"
    with pytest.raises(BoardError, match="cannot be listed"):
        start.list("rows.json")


def test_a_file_is_replaced_only_if_that_is_asked_for(start: StartFolder) -> None:
    path = start.write("new.yaml", "a: 1\n", overwrite=False)
    with pytest.raises(BoardError, match="exists already") as caught:
        start.write("new.yaml", "a: 2\n", overwrite=False)
    assert caught.value.status == 409
    assert path.read_text() == "a: 1\n"
    start.write("new.yaml", "a: 2\n", overwrite=True)
    assert path.read_text() == "a: 2\n"


@pytest.mark.parametrize(
    "path", ["", ".", ".ssh", "below/.x/a.yaml", "../a.yaml", "link-out/a.yaml"]
)
def test_nothing_is_written_outside_or_hidden(start: StartFolder, path: str) -> None:
    with pytest.raises(BoardError):
        start.write(path, "x", overwrite=True)
    assert not (start.root.parent / "a.yaml").exists()


def test_a_name_with_a_dash_is_no_option_of_a_command(start: StartFolder) -> None:
    assert start.word(start.root / "--judge=x") == "./--judge=x"
    assert start.word(start.root / "below") == "below"
