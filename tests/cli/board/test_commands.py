"""Commands whose output a page waits for."""

import asyncio
from pathlib import Path

import psutil
import pytest

from glmtune.cli.board.commands import Slot
from glmtune.cli.board.folder import BoardError

ENDLESS = ("board", ".", "--port", "0")  # it runs until it is ended


def commands() -> list[psutil.Process]:
    """The commands that this process has started and that still run."""
    return [each for each in psutil.Process().children() if "glmtune" in each.cmdline()]


async def never() -> bool:
    return False


async def always() -> bool:
    return True


def test_a_command_gives_its_output_or_its_message(tmp_path: Path) -> None:
    slot = Slot(tmp_path)
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user was run')")

    output = asyncio.run(slot.run(["--version"], never))
    assert (output.code, output.text.split()[0]) == (0, "glmtune")
    refused = asyncio.run(slot.run(["plan", "none.yaml", "--json"], never))
    with pytest.raises(BoardError, match=r"^none.yaml: there is no such recipe."):
        refused.json()


def test_a_command_ends_when_its_page_leaves(tmp_path: Path) -> None:
    output = asyncio.run(Slot(tmp_path).run(ENDLESS, always))

    assert output.code != 0
    assert commands() == []


def test_a_newer_request_ends_the_older_one(tmp_path: Path) -> None:
    slot = Slot(tmp_path)

    async def twice() -> tuple[object, object]:
        older = asyncio.create_task(slot.run(ENDLESS, never))
        await asyncio.sleep(0.3)
        newer = asyncio.create_task(slot.run(["--version"], never))
        return await asyncio.gather(older, newer, return_exceptions=True)

    older, newer = asyncio.run(twice())
    assert isinstance(older, BoardError)
    assert older.status == 409
    assert getattr(newer, "code", None) == 0
    assert commands() == []
