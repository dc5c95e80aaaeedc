"""docs/library.md runs as it stands, and docs/api.md is the one that is generated."""

import re
import runpy
from pathlib import Path

import pytest

import glmtune

ROOT = Path(__file__).parents[1]


def test_the_api_page_is_the_one_that_make_docs_writes() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]()

    assert page == (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), "run `make docs`"
    for name in glmtune._PUBLIC:
        assert f"glmtune.{name}" in page or f"### `{name}`" in page


@pytest.mark.slow  # three short trainings
def test_the_examples_of_the_library_page_run(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    quick = 'checks={"stock_reader": False, "stop_prompts": 1, "max_new_tokens": 4}, '
    names: dict[str, object] = {}

    for block in blocks:
        if "logging" in block and "basicConfig" in block:
            continue  # it would change the logging of all other tests
        code = block.replace('"nano", rows, ', f"{str(tiny_model_dir)!r}, rows, {quick}")
        exec(compile(code, "docs/library.md", "exec"), names)

    printed = capsys.readouterr().out
    assert len(blocks) >= 5
    assert "proofs passed" in printed
    assert "3 " in printed  # the third step, by the callback
    assert isinstance(names["own"], glmtune.Run)
    assert names["own"].is_finished
