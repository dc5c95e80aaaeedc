"""The documentation: commands and tests that exist, links that lead to files, every key."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.recipe.explain import keys_of
from glmtune.recipe.recipe import PretrainRecipe, Recipe

ROOT = Path(__file__).parents[1]
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer has no name for it
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]

    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_has_arguments_and_options_that_exist(page: Path) -> None:
    program: Any = get_command(app)
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|console|text)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    shown = [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?glmtune [^\[]", line)]
    wrong = []
    for line in shown:
        if "[OPTIONS]" in line:  # the usage lines of docs/cli.md
            continue
        try:
            context = program.make_context("glmtune", shlex.split(line, comments=True)[1:])
            given = [*context._protected_args, *context.args]
            name, command, rest = program.resolve_command(context, given)
            command.make_context(name, rest, parent=context)
        except typer.Exit:  # --help
            continue
        except USAGE_ERROR as error:
            wrong.append(f"{line}: {error.format_message()}")

    assert wrong == []


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_the_readme_starts_with_its_two_commands(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")

    assert 0 < text.index("make demo") < text.index("make test") < 1500


def test_every_command_explains_itself() -> None:
    assert len(app.registered_commands) >= 10
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        shown = CliRunner().invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert "Usage" in shown.output


def test_both_readmes_show_the_same_commands() -> None:
    english, chinese = (
        re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
        for page in ("README.md", "README_zh.md")
    )

    assert english == chinese


def test_the_page_of_checks_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "proofs.md").read_text("utf-8")))
    written = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))

    assert len(named) > 40
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []


def test_the_recipe_page_lists_every_key() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([a-z0-9_]+)`", page))

    keys = {key for section in Recipe.model_fields for key in keys_of(section)}
    keys |= {
        key
        for section in PretrainRecipe.model_fields
        for key in keys_of(section, kind=PretrainRecipe)
    }
    assert keys - listed == set()


def test_the_command_page_is_the_one_that_make_docs_writes(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "typer", "glmtune.cli.main", "utils", "docs", "--name", "glmtune",
        "--output", str(tmp_path / "cli.md"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)

    fresh = (tmp_path / "cli.md").read_text(encoding="utf-8")
    assert fresh == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run `make docs`"


def test_the_page_of_keys_and_those_of_failures_are_the_ones_that_make_docs_writes() -> None:
    keys = runpy.run_path(str(ROOT / "docs" / "make_recipe_keys.py"))["page"]()
    failures = runpy.run_path(str(ROOT / "docs" / "make_faq.py"))

    assert keys == (ROOT / "docs" / "recipe_keys.md").read_text("utf-8"), "run `make docs`"
    for name, words in failures["PAGES"].items():
        written = (ROOT / "docs" / name).read_text("utf-8")
        assert failures["page"](words) == written, "run `make docs`"


def test_a_failure_is_found_by_its_message_and_a_key_by_its_name() -> None:
    keys = (ROOT / "docs" / "recipe_keys.md").read_text("utf-8")
    faq, faq_zh = ((ROOT / "docs" / name).read_text("utf-8") for name in ("faq.md", "faq_zh.md"))

    # type and default come from the models, the sentence from docs/recipes.md
    row = "| `lora_alpha` | number, above 0 | 16 | the update is scaled by `lora_alpha / r` |"
    assert row in keys
    assert "| `max_steps` | whole number, above 0 or null | null | number of optimizer" in keys
    listed = set(re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE))
    assert {key for section in Recipe.model_fields for key in keys_of(section)} <= listed
    for page in (faq, faq_zh):
        assert "'GenerationConfig' object has no attribute '_eos_token_tensor'" in page
    assert faq.count("\n### ") == faq_zh.count("\n### ") > 60
