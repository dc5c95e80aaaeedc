"""Who may use the board."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.board.conftest import Board, running
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import OutputError, RecipeError
from glmtune.use.serve.access import Access


def test_a_page_of_another_site_is_refused(board: Board) -> None:
    own = {"Origin": board.url, "Sec_Fetch_Site": "same-origin"}
    assert board.send("/api/files", {}, **own)[0] == 200
    for foreign in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "evil.example"},
    ):
        assert board.send("/api/files", {}, **foreign)[0] == 403, foreign
    assert board.send("/", None, Host="evil.example")[0] == 403
    assert board.send("/api/files", {}, Content_Type="text/plain")[0] == 415


def test_the_page_and_its_files_run_only_what_is_ours(board: Board) -> None:
    import urllib.request

    for path in ("/", "/board.js", "/recipe.js", "/board.css"):
        with urllib.request.urlopen(board.url + path) as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'; script-src 'self'" in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert board.send("/page/../command.py")[0] == 404
    assert board.send("/api/files")[0] == 405  # GET


def test_a_key_opens_the_board_and_becomes_a_cookie(tmp_path: Path) -> None:
    import urllib.request

    with running(tmp_path, Access(api_key="secret")) as board:
        assert board.send("/")[0] == 200  # the page, which asks for the key
        assert board.send("/api/files", {}) == (
            401, {"error": "the key is missing. Open the page and enter it."},
        )  # fmt: skip
        assert board.send("/report/out/a")[0] == 401
        assert board.send("/chat/")[0] == 401
        assert board.send("/api/login", {}, Authorization="Bearer wrong")[0] == 401
        assert board.send("/api/files", {}, Authorization="Bearer secret")[0] == 200
        login = urllib.request.Request(
            f"{board.url}/api/login", b"{}", {"Authorization": "Bearer secret"}
        )
        with urllib.request.urlopen(login) as response:
            cookie = response.headers["Set-Cookie"]
        assert re.search(r"HttpOnly; Path=/; SameSite=strict", cookie)
        given = cookie.partition(";")[0]
        assert "secret" not in given
        assert board.send("/api/files", {}, Cookie=given)[0] == 200
        assert board.send("/api/files", {}, Cookie=given + "x")[0] == 401


def test_another_address_needs_a_key_and_a_folder_must_exist(tmp_path: Path) -> None:
    def start(*arguments: str) -> None:
        CliRunner().invoke(app, ["board", *arguments], catch_exceptions=False)

    with pytest.raises(RecipeError, match="a key is needed: set GLMTUNE_API_KEY"):
        start(str(tmp_path), "--host", "0.0.0.0")
    with pytest.raises(OutputError, match="is not a folder"):
        start(str(tmp_path / "none"), "--port", "0")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    with pytest.raises(RecipeError, match=re.escape("pip install 'glmtune[serve]'")):
        CliRunner().invoke(app, ["board"], catch_exceptions=False)


def test_a_request_that_is_no_request_is_refused_in_a_sentence(board: Board) -> None:
    assert board.send("/api/files", b"{")[1] == {
        "error": "the request is no JSON. Reload the page."
    }
    assert board.send("/api/files", b"[" * 100_000)[0] == 400
    assert board.send("/api/files", b'{"path": "' + b"x" * 3 * 2**20 + b'"}')[0] == 413
    bodies: tuple[Any, ...] = ({"path": 3}, {"unknown": 1}, [], "text", {"path": None})
    for body in bodies:
        status, message = board.refusal("files", body)
        assert (status, message.endswith("Reload the page.")) == (400, True)
