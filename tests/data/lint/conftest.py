"""Files with faults planted among good rows, and templates to lint them with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.data.lint.planted import AT, CLEAN_PAIRS, clean_rows, write

from glmtune.model.load import load_tokenizer
from glmtune.recipe.choices import Layout
from glmtune.template.base import Template
from glmtune.template.select import template_for


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., str]:
    """Write the clean rows with others among them, the first at line `AT`."""

    def plant(*rows: Mapping[str, Any] | str) -> str:
        good = clean_rows()
        return write(tmp_path / "rows.jsonl", [*good[: AT - 1], *rows, *good[AT - 1 :]])

    return plant


@pytest.fixture(scope="module")
def template_of(tiny_model_dir: Path) -> Callable[[Layout], Template]:
    tokenizer = load_tokenizer(tiny_model_dir)
    return lambda layout: template_for(tokenizer, layout)


@pytest.fixture
def plant_pair(tmp_path: Path) -> Callable[..., str]:
    """Write clean pairs with another among them, at line `AT`."""

    def plant(*rows: Mapping[str, Any]) -> str:
        pairs = [*CLEAN_PAIRS[: AT - 1], *rows, *CLEAN_PAIRS[AT - 1 :]]
        return write(tmp_path / "pairs.jsonl", pairs)

    return plant
