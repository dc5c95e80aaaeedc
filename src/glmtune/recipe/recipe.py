"""A run as a value: read from YAML, changed by `key=value`, checked, written back.

Keys have the names that transformers and peft use. The resolved recipe is saved with the adapter,
and running that file again repeats the run.

    glmtune train chatglm3-lora data.train=rows.json adapter.r=16

A key may be given without its section where only one section has it (`learning_rate=1e-5`).
Names from older releases of transformers are accepted with one warning.
"""

from typing import Any, Self, TypeVar

import yaml
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from glmtune.recipe.methods import AdapterSection, FullSection, LoraSection, NoneSection
from glmtune.recipe.numbers import LARGEST, number_or_text
from glmtune.recipe.rule import check_rules
from glmtune.recipe.rules import FINE_TUNING_RULES, PRETRAINING_RULES, RUN_RULES
from glmtune.recipe.sections import (
    ChecksSection,
    DataSection,
    LintSection,
    ModelSection,
    ObjectiveSection,
    OutputSection,
    PreferenceSection,
    Section,
    TextSection,
    TrainingSection,
)

RECIPE = "recipe.yaml"  # of a run, in its output folder


class RunRecipe(Section):
    """The sections of every run."""

    model: ModelSection
    data: TextSection
    adapter: AdapterSection
    training: TrainingSection = TrainingSection()
    checks: ChecksSection = ChecksSection()
    output: OutputSection

    @model_validator(mode="after")
    def _check_run_rules(self) -> Self:
        check_rules(self, RUN_RULES)
        return self

    @property
    def trains(self) -> bool:
        """Whether anything is trained; adapter.method=none only evaluates."""
        return not isinstance(self.adapter, NoneSection)

    @property
    def is_preference(self) -> bool:
        """Whether pairs of answers are learned, rather than rows."""
        return False

    @property
    def has_labels(self) -> bool:
        """Whether every row says if its answer is a good one."""
        return False

    def to_yaml(self) -> str:
        """Write all values, defaults included, so that later defaults change nothing."""
        return yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


class Recipe(RunRecipe):
    """The recipe of a fine-tuning run."""

    data: DataSection
    adapter: AdapterSection = LoraSection()
    preference: PreferenceSection = PreferenceSection()
    lint: LintSection = LintSection()

    @property
    def is_preference(self) -> bool:
        """Whether pairs of answers are learned, rather than rows."""
        return self.preference.stage == "dpo"

    @property
    def has_labels(self) -> bool:
        """Whether every row says if its answer is a good one."""
        return self.preference.stage == "kto"

    @model_validator(mode="after")
    def _check_fine_tuning_rules(self) -> Self:
        check_rules(self, FINE_TUNING_RULES)
        return self


class PretrainModelSection(ModelSection):
    """Which model continues training, or the tokenizer and configuration of a new one."""

    # Fields of config.json for a new model; `name_or_path` then only names the tokenizer.
    config: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @field_validator("config", mode="before")
    @classmethod
    def _is_flat(cls, value: Any) -> Any:
        """Read numbers that YAML takes for text (1e-5), and refuse what is none of the types."""
        for name, each in value.items() if isinstance(value, dict) else ():
            is_sane = not isinstance(each, float) or abs(each) <= LARGEST
            if not isinstance(each, bool | int | float | str) or not is_sane:
                raise PydanticCustomError(
                    "no_field",
                    "{name} is no text, true, false, or number of a sane size",
                    {"name": name},
                )
        if not isinstance(value, dict):
            return value
        return {name: number_or_text(each) for name, each in value.items()}


class PretrainRecipe(RunRecipe):
    """The recipe of a pre-training run."""

    model: PretrainModelSection
    objective: ObjectiveSection = ObjectiveSection()
    adapter: AdapterSection = FullSection()

    @model_validator(mode="after")
    def _check_pretraining_rules(self) -> Self:
        check_rules(self, PRETRAINING_RULES)
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)
