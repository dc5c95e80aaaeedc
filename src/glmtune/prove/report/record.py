"""The files of a run, read back: what a report, a comparison and a notebook show.

Nothing heavy is imported, and nothing of a run is needed but `recipe.yaml`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import OutputError
from glmtune.prove.metrics import METRICS, read_metrics
from glmtune.prove.report.facts import NO_FACTS, ReportFacts, read_facts
from glmtune.recipe.recipe import RECIPE
from glmtune.recipe.yaml_text import YamlError, parse_yaml


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the files of a run say.

    Attributes:
        folder: the output folder.
        recipe_text: of the resolved recipe.
        recipe: the same as plain sections; empty where it is no recipe.
        lines: of the metrics.
        facts: everything else.
        why_missing: the reason why there are no facts, "" if there are.
    """

    folder: Path
    recipe_text: str
    recipe: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    facts: ReportFacts
    why_missing: str = ""

    def value(self, key: str) -> Any:
        """Return the value of `section.key` of the recipe, None if it has none."""
        section, _, name = key.partition(".")
        values = self.recipe.get(section)
        return values.get(name) if isinstance(values, Mapping) else None

    @property
    def is_pretraining(self) -> bool:
        """Whether texts were learned, by `glmtune pretrain`."""
        return "objective" in self.recipe

    @property
    def is_preference(self) -> bool:
        """Whether pairs of answers were learned."""
        return self.value("preference.stage") not in (None, "sft")

    @property
    def trains(self) -> bool:
        """Whether anything was trained; adapter.method=none only evaluates."""
        return bool(self.value("adapter.method") != "none")


def read_record(folder: Path, *, damaged_too: bool = False) -> RunRecord:
    """Read the files of a run.

    Args:
        folder: the output folder.
        damaged_too: read on if `report.json` is damaged or of a later version; `why_missing` then
            says so.

    Raises:
        OutputError: the folder holds no run, or a file of it is damaged.
    """
    text = read_recipe_text(folder)
    try:
        facts, why_missing = read_facts(folder, text)
    except OutputError as error:
        if not damaged_too:
            raise
        facts, why_missing = NO_FACTS, str(error)
    lines = read_metrics(folder / METRICS)
    return RunRecord(folder, text, _sections(text), lines, facts, why_missing)


def read_recipe_text(folder: Path) -> str:
    """Read the recipe of a run.

    Raises:
        OutputError: there is none, or it cannot be read.
    """
    path = folder / RECIPE
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise OutputError(
            f"{folder}: there is no {RECIPE} in it, so it is not the folder of a run. "
            "Give the output.dir of `glmtune train`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _sections(text: str) -> Mapping[str, Any]:
    """Parse a recipe of any version: no key is required, and none is refused."""
    try:
        tree = parse_yaml(text).tree
    except YamlError:
        return {}
    return tree if isinstance(tree, dict) else {}
