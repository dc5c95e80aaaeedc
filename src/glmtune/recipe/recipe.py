"""A run as a value: read from YAML, changed by `key=value`, checked, written back.

Keys bear the names that transformers and peft use. What was resolved is written beside the
adapter that it made, and running that file again repeats the run.

    glmtune train recipes/chatglm3-lora.yaml data.train=rows.json adapter.r=16

A key may be given without its section where only one section has it (`learning_rate=1e-5`).
Names that older releases of transformers used are accepted with one warning.
"""

from pathlib import Path
from typing import Self, TypeVar

import yaml
from pydantic import (
    Field,
    model_validator,
)

from glmtune.recipe.methods import (
    SHARDED,
    AdapterSection,
    FreezeSection,
    FullSection,
    LoraSection,
    NoneSection,
    PeftSection,
    PromptSection,
    PtuningV2Section,
    QloraSection,
)
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


class RunRecipe(Section):
    """What every run has."""

    model: ModelSection
    data: TextSection
    adapter: AdapterSection
    training: TrainingSection = TrainingSection()
    checks: ChecksSection = ChecksSection()
    output: OutputSection

    @model_validator(mode="after")
    def _agree(self) -> Self:
        held_out = bool(self.data.eval) or self.data.eval_fraction > 0
        if self.data.eval and self.data.eval_fraction:
            raise ValueError("data.eval and data.eval_fraction are both given; keep one of them")
        if self.training.early_stopping_patience and not held_out:
            raise ValueError(
                "training.early_stopping_patience needs held-out rows: "
                "give data.eval or data.eval_fraction"
            )
        trains_weights = isinstance(self.adapter, FullSection | FreezeSection)
        if trains_weights and self.model.dtype not in ("auto", "float32"):
            raise ValueError(
                f"adapter.method={self.adapter.method} trains the weights themselves, and "
                f"{self.model.dtype} loses most of their updates. Leave model.dtype out, which is "
                "float32 here; training.bf16=true computes in bfloat16 all the same"
            )
        adds_tokens = isinstance(self.adapter, PtuningV2Section | PromptSection)
        if adds_tokens and self.model.attn_implementation != "packed":
            raise ValueError(
                f"model.attn_implementation={self.model.attn_implementation} has no place for what "
                f"adapter.method={self.adapter.method} puts before every row. Use packed"
            )
        if self.model.compute == "int8" and trains_weights:
            raise ValueError(
                f"model.compute=int8 is for frozen weights, and adapter.method="
                f"{self.adapter.method} trains them. Use adapter.method=lora, or leave "
                "model.compute out"
            )
        if self.model.compute == "int8" and isinstance(self.adapter, QloraSection):
            raise ValueError(
                "model.compute=int8 and adapter.method=qlora are two ways to hold the same "
                "layers. Leave one of them out"
            )
        takes_weights = isinstance(self.adapter, LoraSection) and (
            self.adapter.use_dora or self.adapter.takes_from_base
        )
        if self.model.compute == "int8" and takes_weights:
            raise ValueError(
                "adapter.use_dora and adapter.init_lora_weights=pissa or olora need the weights "
                "in 16 bits, and model.compute=int8 does not keep them. Leave one of the two out"
            )
        dealt_out = self.training.dealt_out
        if dealt_out and self.model.compute == "int8":
            raise ValueError(
                f"training.{dealt_out} is for plain weights, and model.compute=int8 packs them. "
                "Leave one of the two out"
            )
        if dealt_out and self.training.optim != "adamw_torch":
            raise ValueError(
                f"training.{dealt_out} and training.optim={self.training.optim} do not go "
                "together; dealing out alone divides what AdamW keeps. Leave one of the two out"
            )
        if dealt_out and type(self.adapter) not in SHARDED:
            raise ValueError(
                f"training.{dealt_out} works with adapter.method="
                f"{', '.join(kind.model_fields['method'].default for kind in SHARDED)}, and not "
                f"with {self.adapter.method}. Leave it out"
            )
        if self.training.sharding and self.training.neftune_noise_alpha is not None:
            raise ValueError(
                "training.neftune_noise_alpha reads the vectors of tokens whole, and "
                f"training.{dealt_out} deals them out. Leave one of the two out"
            )
        if self.training.sharding and self.checks.sample_steps:
            raise ValueError(
                "checks.sample_steps lets one process answer in the middle of a run, and with "
                f"training.{dealt_out} none has the whole model. Leave one of the two out"
            )
        if isinstance(self.adapter, NoneSection) and not held_out:
            raise ValueError(
                "adapter.method=none only evaluates, and there is nothing held out: "
                "give data.eval or data.eval_fraction"
            )
        if Path(self.output.dir).resolve() == Path(self.model.name_or_path).resolve():
            raise ValueError(
                f"output.dir is the folder of the model itself ({self.output.dir}); "
                "give a folder of its own"
            )
        return self

    @property
    def trains(self) -> bool:
        """Whether anything is trained; adapter.method=none only evaluates."""
        return not isinstance(self.adapter, NoneSection)

    @property
    def is_preference(self) -> bool:
        """Whether pairs of answers are learned, rather than rows."""
        return False

    def to_yaml(self) -> str:
        """Write every value, the defaults included, so that later defaults change nothing."""
        return yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


class Recipe(RunRecipe):
    """Everything that decides a fine-tuning."""

    data: DataSection
    adapter: AdapterSection = LoraSection()
    preference: PreferenceSection = PreferenceSection()
    lint: LintSection = LintSection()

    @property
    def is_preference(self) -> bool:
        """Whether pairs of answers are learned, rather than rows."""
        return self.preference.stage == "dpo"

    @model_validator(mode="after")
    def _prefers(self) -> Self:
        preference, adapter = self.preference, self.adapter
        if preference.stage == "sft":
            return self
        if self.data.overlong != "drop":
            raise ValueError(
                f"data.overlong={self.data.overlong} would give the two answers of a pair "
                "different prompts. Leave it out with preference.stage=dpo"
            )
        if self.training.dealt_out or self.data.replay is not None:
            raise ValueError(
                "training.sharding, training.deepspeed and data.replay are not there for "
                "preference.stage=dpo. Leave them out"
            )
        if self.training.label_smoothing_factor:
            raise ValueError(
                "training.label_smoothing_factor smooths the loss of answers, and "
                "preference.stage=dpo has another. Leave it out"
            )
        if not isinstance(adapter, PeftSection):
            if preference.has_reference or not isinstance(adapter, FullSection | FreezeSection):
                raise ValueError(
                    f"preference.loss={preference.loss} is for an adapter over its base, and "
                    f"adapter.method={adapter.method} is none of that kind. Use lora; or, with "
                    "full and freeze, preference.loss=simpo or orpo"
                )
            return self
        changes_base = isinstance(adapter, LoraSection) and adapter.bias != "none"
        if preference.has_reference and changes_base:
            raise ValueError(
                f"preference.loss={preference.loss} compares with the base, which adapter.bias "
                "changes. Leave it out, or use preference.loss=simpo or orpo"
            )
        if preference.has_reference and adapter.name_or_path is not None:
            raise ValueError(
                f"preference.loss={preference.loss} compares with the base, and not with the "
                "adapter of adapter.name_or_path. Merge that one first and give the merged model, "
                "or use preference.loss=simpo or orpo"
            )
        return self


class PretrainModelSection(ModelSection):
    """Which model goes on learning, or which tokenizer and shape a new one has."""

    # The fields of config.json, for a new model; `name_or_path` then gives the tokenizer alone.
    config: dict[str, bool | int | float | str] = Field(default_factory=dict)


class PretrainRecipe(RunRecipe):
    """Everything that decides a pre-training."""

    model: PretrainModelSection
    objective: ObjectiveSection = ObjectiveSection()
    adapter: AdapterSection = FullSection()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.training.dealt_out:
            raise ValueError(
                f"training.{self.training.dealt_out} is not there for pre-training. Leave it out"
            )
        if self.model.config and not isinstance(self.adapter, FullSection):
            raise ValueError(
                f"model.config makes a new model, which adapter.method={self.adapter.method} "
                "would leave as it was drawn. Use adapter.method=full"
            )
        has_prefix = any(w for name, w in self.objective.weights().items() if name != "causal")
        if has_prefix and self.model.attn_implementation != "packed":
            raise ValueError(
                f"model.attn_implementation={self.model.attn_implementation} lets no token of a "
                "blank's context see a later one, so it would learn another objective in silence. "
                "Use packed, or objective.causal alone"
            )
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)
