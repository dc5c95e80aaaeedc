"""The notebooks are those that notebooks/make.py writes, and run from first to last cell."""

import runpy
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("rows_to_chat", "own_task")


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_the_notebooks_are_those_that_are_generated(tmp_path: Path) -> None:
    runpy.run_path(str(FOLDER / "make.py"))["write"](tmp_path)

    written = {path.name: path.read_text("utf-8") for path in tmp_path.glob("*.ipynb")}
    kept = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.ipynb")}
    assert written == kept, "run `python notebooks/make.py`"
    assert len(kept) == 4


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_code(name: str) -> None:
    english, chinese = (
        [cell.source for cell in read(f"{name}_{language}").cells if cell.cell_type == "code"]
        for language in ("en", "zh")
    )

    assert english == chinese
    assert name != "own_task" or len(english) == 10  # as it says


@pytest.mark.slow
@pytest.mark.parametrize(("name", "answer"), [("rows_to_chat", "小智"), ("own_task", "10-01")])
def test_a_notebook_runs_to_its_end_and_shows_its_run(
    name: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    book = read(f"{name}_en")
    resources = {"metadata": {"path": str(tmp_path)}}

    client.NotebookClient(book, timeout=600, resources=resources).execute()

    outputs = [each for cell in book.cells for each in cell.get("outputs", ())]
    pages = [each["data"]["text/html"] for each in outputs if "text/html" in each.get("data", {})]
    progress, run = pages[0], pages[-1]
    steps = {"rows_to_chat": 20, "own_task": 48}[name]
    assert f'<progress value="{steps}" max="{steps}"' in progress
    assert "proofs passed" in run
    texts = [each["data"].get("text/plain", "") for each in outputs if "data" in each]
    assert answer in texts[-1] or any(answer in text for text in texts)
    noise = [each["text"] for each in outputs if each.get("name") == "stderr"]
    assert not [text for text in noise if "Warning" in text or "it/s" in text]
