"""Optional packages: what works without them, and the sentence where one is needed."""

import importlib.metadata
import json
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.data.lint.run import lint_data
from glmtune.data.sources import read_rows
from glmtune.errors import DataError
from glmtune.inspect.doctor.machine import describe_machine
from glmtune.recipe.sections import DataSection

ROOT = Path(__file__).parents[1]
STORY = "从前有座山，山上有座庙，庙里有个老和尚在讲故事。" * 5


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make Python believe that a package is not installed."""
    monkeypatch.setitem(sys.modules, package, None)
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_hub_data_set_and_a_saved_folder_need_the_datasets_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "datasets")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{}")

    for name, problem in (
        ("owner/rows", "owner/rows: there is no such file or folder (working folder: "),
        (str(saved), f"{saved}: is a `datasets.save_to_disk` folder, and reading it needs"),
    ):
        with pytest.raises(DataError, match=re.escape(problem)) as caught:
            list(read_rows(name))
        assert "not installed. Run `pip install 'glmtune[datasets]'`, or give" in str(caught.value)


def alpaca(question: str, answer: str) -> dict[str, str]:
    return {"instruction": question, "input": "", "output": answer}


def test_lint_without_its_extra_checks_all_but_near_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out = tmp_path / "train.json", tmp_path / "held_out.json"
    rows = [alpaca("Count to two, please", "one two"), alpaca("count to  two, please", "One two")]
    rows += [alpaca("讲故事", STORY), alpaca("讲故事", STORY)]
    train.write_text(json.dumps(rows), encoding="utf-8")
    held_out.write_text(json.dumps([alpaca("讲故事", STORY)]), encoding="utf-8")
    section = DataSection(train=(str(train),), eval=(str(held_out),))

    complete = lint_data(section)
    hide(monkeypatch, "rensa")
    report = lint_data(section)

    if "near-duplicate" in complete.checked:  # the extra is installed here
        assert {finding.check for finding in complete.findings} >= {"near-duplicate"}
    assert {finding.check for finding in report.findings} >= {"duplicate", "leak"}
    assert "near-duplicate" not in report.checked
    assert "near-duplicate" not in {finding.check for finding in report.findings}
    assert report.not_checked["near-duplicate"] == (
        "needs the package rensa: pip install 'glmtune[lint]'; "
        "leaks are found by equal prompts only"
    )


def test_the_lint_command_names_the_extra_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "rensa")
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([alpaca("问", "答")]), encoding="utf-8")

    shown = CliRunner().invoke(app, ["lint", str(rows)], env={"COLUMNS": "200"}).output

    assert "not checked: near-duplicate (needs the package rensa: pip install 'glmtune[lint]'" in (
        " ".join(shown.split())  # brackets are markup in rich
    )


def project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["project"])


def test_the_doctor_accepts_that_an_optional_package_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, "datasets")
    [datasets] = project()["optional-dependencies"]["datasets"]
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda _: [*project()["dependencies"], f'{datasets}; extra == "datasets"'],
    )

    versions = {version.name: version for version in describe_machine().versions}

    assert versions["datasets"].found is None
    assert versions["datasets"].fits
    assert versions["datasets"].wanted


def test_everything_that_the_package_imports_is_declared() -> None:
    requirements = [*project()["dependencies"]]
    for extra in project()["optional-dependencies"].values():
        requirements += extra
    declared = {re.split(r"[<>=\[ ]", each)[0].replace("-", "_").lower() for each in requirements}
    modules = {"yaml": "pyyaml"}
    imported = {
        match[1]
        for path in (ROOT / "src").rglob("*.py")
        for match in re.finditer(
            r"^\s*(?:from|import) ([a-z_0-9]+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    by_torch = {"triton"}  # torch's wheels for CUDA bring it along, and without one it is not used
    outside = imported & {*importlib.metadata.packages_distributions()} - {"glmtune"} - by_torch

    assert {modules.get(name, name) for name in outside} - declared == set()
