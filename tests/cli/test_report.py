"""`glmtune report` and `glmtune inspect --html` write a page and print its path."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import OutputError
from glmtune.recipe.reading import build_recipe


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_report_writes_the_page_of_a_run_and_prints_its_path(tmp_path: Path) -> None:
    tree = {
        "model": {"name_or_path": "./base"},
        "data": {"train": "rows.json"},
        "output": {"dir": str(tmp_path)},
    }
    (tmp_path / "recipe.yaml").write_text(build_recipe(tree).to_yaml(), encoding="utf-8")

    printed = invoke("report", tmp_path)

    page = tmp_path / "report.html"
    assert printed == f"{page}\n"
    assert "name_or_path: ./base" in page.read_text(encoding="utf-8")


def test_report_loads_no_library_for_tensors(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {name_or_path: ./base}", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    code = (
        "import sys; from pathlib import Path\n"
        "from glmtune.prove.report.page import rewrite_report\n"
        "rewrite_report(Path(sys.argv[1]))\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "loss.svg").is_file()


def test_report_of_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not the folder of a run"):
        invoke("report", tmp_path)


def test_inspect_writes_a_page_of_the_rows_that_were_asked_for(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"第{n}问", "input": "", "output": f"第{n}答"} for n in range(1, 4)]
    rows.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    page = tmp_path / "rows.html"

    printed = invoke("inspect", rows, "--model", tiny_model_dir, "--row", "2", "--html", page)

    html = page.read_text(encoding="utf-8")
    assert printed == f"{page}\n"
    assert f'<b>row 2</b> <span class="place">{rows}:2</span>' in html
    assert "<h2>Row 2</h2>" in html
