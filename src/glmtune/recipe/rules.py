"""Conflicts between the keys of a recipe, as a table: what is refused, and why.

A rule looks at a complete recipe, so it may compare keys of several sections. The first rule that
a recipe breaks becomes its error. `docs/recipes.md` lists the rules as `document()` prints them:

    python -m glmtune.recipe.rules
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glmtune.recipe import places
from glmtune.recipe.methods import (
    FreezeSection,
    FullSection,
    LoraSection,
    NoneSection,
    PeftSection,
    PromptSection,
    PromptTuningSection,
    PtuningV2Section,
    QloraSection,
)
from glmtune.recipe.rule import Rule
from glmtune.recipe.streaming_rules import STREAMING_RULES

if TYPE_CHECKING:
    from glmtune.recipe.recipe import PretrainRecipe, Recipe, RunRecipe

# Methods whose weights FSDP2 and DeepSpeed can shard; a subclass needs its own entry.
SHARDABLE = (LoraSection, FullSection, FreezeSection)
_SHARDABLE_METHODS = ", ".join(kind.model_fields["method"].default for kind in SHARDABLE)


def _has_held_out_rows(recipe: "RunRecipe") -> bool:
    return bool(recipe.data.eval) or recipe.data.eval_fraction > 0


def _is_sharded(recipe: "RunRecipe") -> bool:
    return recipe.training.sharded_by is not None


def _trains_weights(recipe: "RunRecipe") -> bool:
    return isinstance(recipe.adapter, FullSection | FreezeSection)


def _takes_from_base(recipe: "RunRecipe") -> bool:
    return isinstance(recipe.adapter, LoraSection) and recipe.adapter.takes_from_base


def _uses_dora(recipe: "RunRecipe") -> bool:
    return isinstance(recipe.adapter, LoraSection) and recipe.adapter.use_dora


def _adds_virtual_tokens(recipe: "RunRecipe") -> bool:
    return isinstance(recipe.adapter, PtuningV2Section | PromptSection)


ADAPTER_RULES: tuple[Rule["RunRecipe"], ...] = (
    Rule(
        ("adapter.layers_to_transform=[0]",),
        lambda recipe: (
            isinstance(recipe.adapter, LoraSection)
            and recipe.adapter.layers_to_transform is not None
            and not isinstance(recipe.adapter.target_modules, tuple)
        ),
        "adapter.layers_to_transform needs adapter.target_modules by name; give "
        "adapter.target_modules=[query_key_value], for example",
    ),
    Rule(
        ("adapter.init_lora_weights=pissa", "adapter.name_or_path=out/earlier"),
        lambda recipe: (
            isinstance(recipe.adapter, LoraSection)
            and recipe.adapter.takes_from_base
            and recipe.adapter.name_or_path is not None
        ),
        "adapter.init_lora_weights={adapter.init_lora_weights} initializes the adapter from the "
        "weights, and adapter.name_or_path from an earlier adapter. Leave one of them out",
    ),
    Rule(
        ("adapter.init_lora_weights=pissa", "adapter.use_dora=true"),
        lambda recipe: _takes_from_base(recipe) and _uses_dora(recipe),
        "adapter.init_lora_weights={adapter.init_lora_weights} trains a part of the weights, and "
        "adapter.use_dora needs the norms of the complete weights; peft cannot save the two as "
        "one adapter. Leave one of them out",
    ),
    Rule(
        ("adapter.method=qlora", "adapter.quantization_method=torchao"),
        lambda recipe: (
            isinstance(recipe.adapter, QloraSection)
            and recipe.adapter.quantization_method == "torchao"
            and recipe.adapter.quantization_bit != 8
        ),
        "adapter.quantization_method=torchao packs weights into 8 bits; give "
        "adapter.quantization_bit=8, or use bnb",
    ),
    Rule(
        ("adapter.method=qlora", "adapter.init_lora_weights=olora"),
        lambda recipe: isinstance(recipe.adapter, QloraSection) and _takes_from_base(recipe),
        "adapter.init_lora_weights={adapter.init_lora_weights} initializes the adapter from the "
        "weights, which are packed with adapter.method=qlora. Use adapter.method=lora, or leave "
        "adapter.init_lora_weights out",
    ),
    Rule(
        ("adapter.method=prompt_tuning", "adapter.prompt_tuning_init=TEXT"),
        lambda recipe: (
            isinstance(recipe.adapter, PromptTuningSection)
            and (recipe.adapter.prompt_tuning_init == "TEXT")
            != bool(recipe.adapter.prompt_tuning_init_text)
        ),
        "adapter.prompt_tuning_init=TEXT and adapter.prompt_tuning_init_text belong together; "
        "give both of them, or neither",
    ),
    Rule(
        ("adapter.method=freeze",),
        lambda recipe: (
            isinstance(recipe.adapter, FreezeSection)
            and not recipe.adapter.trainable_layers
            and not recipe.adapter.trainable_modules
        ),
        "adapter.method=freeze trains nothing without further keys; give "
        "adapter.trainable_layers=2 for the last two layers, or adapter.trainable_modules",
    ),
)

ANOTHER_FOLDER = "Give a folder of its own, such as output.dir=out/my-run"
OUTPUT_RULES: tuple[Rule["RunRecipe"], ...] = (
    Rule(
        ("output.dir=.",),
        places.has_no_name,
        f"output.dir ({{output.dir}}) is not a folder with a name. {ANOTHER_FOLDER}",
    ),
    Rule(
        ("output.dir=~/run",),
        places.is_not_expanded,
        "output.dir ({output.dir}) starts with ~, which is the home folder for a shell only. Write "
        "the full path, or give a folder here, such as output.dir=out/my-run",
    ),
    Rule(
        ("output.dir=/home/me",),
        places.holds_home,
        f"output.dir ({{output.dir}}) is your home folder, or holds it. {ANOTHER_FOLDER}",
    ),
    Rule(
        ("output.dir=notes.txt/run",),
        places.is_below_a_file,
        f"output.dir ({{output.dir}}) is below a file. {ANOTHER_FOLDER}",
    ),
    Rule(
        ("model.name_or_path=./chatglm3-6b", "output.dir=chatglm3-6b"),
        places.is_at_the_model,
        "output.dir ({output.dir}) is the folder of the model itself, lies in it or holds it. "
        f"{ANOTHER_FOLDER}",
    ),
    Rule(
        ("data.train=rows/train.json", "output.dir=rows"),
        places.is_at_the_data,
        "output.dir ({output.dir}) holds the data, or lies in a folder whose files are the data. "
        f"{ANOTHER_FOLDER}",
    ),
)

RUN_RULES: tuple[Rule["RunRecipe"], ...] = (
    *ADAPTER_RULES,
    Rule(
        ("training.deepspeed=zero2.json", "training.fp16=true"),
        lambda recipe: (
            bool(recipe.training.deepspeed)
            and (recipe.training.sharding is not None or recipe.training.fp16)
        ),
        "training.deepspeed cannot be combined with training.sharding, which does the same, nor "
        "with training.fp16. Leave one of the two out",
    ),
    Rule(
        ("training.bf16=true", "training.fp16=true"),
        lambda recipe: recipe.training.bf16 and recipe.training.fp16,
        "training.bf16 and training.fp16 are both true. Keep training.bf16 if the device supports "
        "bfloat16, and training.fp16 otherwise",
    ),
    Rule(
        ("data.eval=held_out.json", "data.eval_fraction=0.1"),
        lambda recipe: bool(recipe.data.eval) and recipe.data.eval_fraction > 0,
        "data.eval and data.eval_fraction are both given; keep one of them",
    ),
    Rule(
        ("training.early_stopping_patience=2",),
        lambda recipe: (
            recipe.training.early_stopping_patience is not None and not _has_held_out_rows(recipe)
        ),
        "training.early_stopping_patience needs held-out rows: give data.eval or "
        "data.eval_fraction",
    ),
    Rule(
        ("training.eval_metrics=exact",),
        lambda recipe: bool(recipe.training.eval_metrics) and not _has_held_out_rows(recipe),
        "training.eval_metrics scores answers to held-out rows: give data.eval or "
        "data.eval_fraction",
    ),
    Rule(
        ("training.metric_for_best_model=exact",),
        lambda recipe: (
            recipe.training.metric_for_best_model not in ("loss", *recipe.training.eval_metrics)
        ),
        "training.metric_for_best_model={training.metric_for_best_model} is not measured. Give "
        "training.eval_metrics={training.metric_for_best_model}, or use "
        "training.metric_for_best_model=loss",
    ),
    Rule(
        (
            "data.eval_fraction=0.1",
            "training.eval_metrics=length",
            "training.metric_for_best_model=length",
        ),
        lambda recipe: recipe.training.metric_for_best_model == "length",
        "training.metric_for_best_model=length has no better direction. Use "
        "training.metric_for_best_model=loss, or another metric",
    ),
    Rule(
        (
            "data.eval_fraction=0.1",
            "training.eval_metrics=exact",
            "training.sharding=fsdp2",
        ),
        lambda recipe: bool(recipe.training.eval_metrics) and _is_sharded(recipe),
        "training.eval_metrics generates answers in the middle of a run, and with "
        "training.{training.sharded_by} no process has the complete model. Leave it out, and run "
        "`glmtune evaluate` afterwards",
    ),
    Rule(
        ("adapter.method=full", "model.dtype=bfloat16"),
        lambda recipe: _trains_weights(recipe) and recipe.model.dtype not in ("auto", "float32"),
        "adapter.method={adapter.method} trains the weights themselves, and "
        "model.dtype={model.dtype} loses most of their updates. Leave model.dtype out, which then "
        "means float32; training.bf16=true still computes in bfloat16",
    ),
    Rule(
        ("adapter.method=ptuning_v2", "model.attn_implementation=flash_attention_2"),
        lambda recipe: (
            _adds_virtual_tokens(recipe) and recipe.model.attn_implementation != "packed"
        ),
        "model.attn_implementation={model.attn_implementation} does not support the virtual "
        "tokens that adapter.method={adapter.method} puts before every row. Use "
        "model.attn_implementation=packed",
    ),
    Rule(
        ("model.compute=int8", "adapter.method=full"),
        lambda recipe: recipe.model.compute is not None and _trains_weights(recipe),
        "model.compute={model.compute} is for frozen weights, and adapter.method={adapter.method} "
        "trains them. Use adapter.method=lora, or leave model.compute out",
    ),
    Rule(
        ("model.compute=int8", "adapter.method=qlora"),
        lambda recipe: (
            recipe.model.compute is not None and isinstance(recipe.adapter, QloraSection)
        ),
        "model.compute={model.compute} and adapter.method=qlora are two ways to store the same "
        "layers. Leave one of them out",
    ),
    Rule(
        ("model.compute=int8", "adapter.use_dora=true"),
        lambda recipe: (
            recipe.model.compute is not None and (_uses_dora(recipe) or _takes_from_base(recipe))
        ),
        "adapter.use_dora and adapter.init_lora_weights=pissa or olora need the weights in 16 "
        "bits, and model.compute={model.compute} does not keep them. Leave one of the two out",
    ),
    Rule(
        ("training.sharding=fsdp2", "model.compute=int8"),
        lambda recipe: _is_sharded(recipe) and recipe.model.compute is not None,
        "training.{training.sharded_by} needs unpacked weights, and model.compute={model.compute} "
        "packs them. Leave one of the two out",
    ),
    Rule(
        ("training.sharding=fsdp2", "training.gradient_checkpointing=offload"),
        lambda recipe: _is_sharded(recipe) and recipe.training.gradient_checkpointing == "offload",
        "training.gradient_checkpointing=offload is for a GPU that holds the model, and "
        "training.{training.sharded_by} shards it. Use training.gradient_checkpointing=true",
    ),
    Rule(
        ("training.sharding=fsdp2", "training.optim=adamw_bnb_8bit"),
        lambda recipe: _is_sharded(recipe) and recipe.training.optim != "adamw_torch",
        "training.{training.sharded_by} and training.optim={training.optim} cannot be combined; "
        "sharding alone divides AdamW's state among processes. Leave one of the two out",
    ),
    Rule(
        ("training.sharding=fsdp2", "adapter.method=qlora"),
        lambda recipe: _is_sharded(recipe) and type(recipe.adapter) not in SHARDABLE,
        "training.{training.sharded_by} works with adapter.method="
        f"{_SHARDABLE_METHODS}, and not with {{adapter.method}}. Leave it out",
    ),
    Rule(
        ("training.sharding=fsdp2", "training.neftune_noise_alpha=5"),
        lambda recipe: (
            recipe.training.sharding is not None and recipe.training.neftune_noise_alpha is not None
        ),
        "training.neftune_noise_alpha needs the complete token embeddings, and "
        "training.{training.sharded_by} shards them. Leave one of the two out",
    ),
    Rule(
        ("training.sharding=fsdp2", "checks.sample_steps=10"),
        lambda recipe: recipe.training.sharding is not None and bool(recipe.checks.sample_steps),
        "checks.sample_steps lets one process answer in the middle of a run, and with "
        "training.{training.sharded_by} no process has the complete model. Leave one of the two "
        "out",
    ),
    Rule(
        ("adapter.method=none",),
        lambda recipe: isinstance(recipe.adapter, NoneSection) and not _has_held_out_rows(recipe),
        "adapter.method=none only evaluates, and there is nothing held out: give data.eval or "
        "data.eval_fraction",
    ),
    *OUTPUT_RULES,
)


def _has_reference(recipe: "Recipe") -> bool:
    return recipe.is_preference and recipe.preference.has_reference


def _is_labeled_over_a_changed_base(recipe: "Recipe") -> bool:
    """Whether rows with labels are to be compared with a base that the run does not have."""
    section = recipe.adapter
    if not recipe.has_labels or not isinstance(section, PeftSection):
        return False
    changes_base = isinstance(section, LoraSection) and section.bias != "none"
    return changes_base or section.name_or_path is not None


def _cannot_prefer(recipe: "Recipe") -> bool:
    """Whether the method has no adapter to switch off, and the loss needs one."""
    if not recipe.is_preference or isinstance(recipe.adapter, PeftSection):
        return False
    return recipe.preference.has_reference or not _trains_weights(recipe)


FINE_TUNING_RULES: tuple[Rule["Recipe"], ...] = (
    *STREAMING_RULES,
    Rule(
        ("preference.stage=dpo", "data.eval_fraction=0.1", "training.eval_metrics=exact"),
        lambda recipe: recipe.is_preference and bool(recipe.training.eval_metrics),
        "training.eval_metrics scores answers of rows, and preference.stage={preference.stage} "
        "has pairs of answers. Leave it out, and run `glmtune evaluate` afterwards",
    ),
    Rule(
        ("preference.stage=dpo", "data.overlong=truncate_prompt"),
        lambda recipe: recipe.is_preference and recipe.data.overlong != "drop",
        "data.overlong={data.overlong} would give the two answers of a pair different prompts. "
        "Leave it out with preference.stage=dpo",
    ),
    Rule(
        ("preference.stage=dpo", "training.sharding=fsdp2"),
        lambda recipe: (
            recipe.is_preference and (_is_sharded(recipe) or recipe.data.replay is not None)
        ),
        "training.sharding, training.deepspeed and data.replay cannot be used with "
        "preference.stage=dpo. Leave them out",
    ),
    Rule(
        ("preference.stage=dpo", "training.label_smoothing_factor=0.1"),
        lambda recipe: recipe.is_preference and recipe.training.label_smoothing_factor > 0,
        "training.label_smoothing_factor smooths the loss of answers, and preference.stage=dpo "
        "has another loss. Leave it out",
    ),
    Rule(
        ("preference.stage=dpo", "adapter.method=full"),
        _cannot_prefer,
        "preference.loss={preference.loss} is for an adapter over its base, and "
        "adapter.method={adapter.method} is not of that kind. Use adapter.method=lora; or, with "
        "full and freeze, preference.loss=simpo or orpo",
    ),
    Rule(
        ("preference.stage=dpo", "adapter.bias=all"),
        lambda recipe: (
            _has_reference(recipe)
            and isinstance(recipe.adapter, LoraSection)
            and recipe.adapter.bias != "none"
        ),
        "preference.loss={preference.loss} compares with the base, which adapter.bias changes. "
        "Leave adapter.bias out, or use preference.loss=simpo or orpo",
    ),
    Rule(
        ("preference.stage=dpo", "adapter.name_or_path=out/earlier"),
        lambda recipe: (
            _has_reference(recipe)
            and isinstance(recipe.adapter, PeftSection)
            and recipe.adapter.name_or_path is not None
        ),
        "preference.loss={preference.loss} compares with the base, and not with the adapter of "
        "adapter.name_or_path. Merge that one first and give the merged model, or use "
        "preference.loss=simpo or orpo",
    ),
    Rule(
        ("data.train_on_prompt=true", "data.mask_history=true"),
        lambda recipe: recipe.data.train_on_prompt and recipe.data.mask_history,
        "data.train_on_prompt learns everything before the last answer, and data.mask_history "
        "nothing of it. Leave one of them out",
    ),
    Rule(
        ("data.train_on_prompt=true", "preference.stage=dpo"),
        lambda recipe: recipe.data.train_on_prompt and recipe.preference.stage != "sft",
        "data.train_on_prompt learns prompts, and preference.stage={preference.stage} compares "
        "answers alone. Leave data.train_on_prompt out",
    ),
    Rule(
        ("preference.stage=kto", "adapter.method=full"),
        lambda recipe: recipe.has_labels and not isinstance(recipe.adapter, PeftSection),
        "preference.stage=kto is for an adapter over its base, and adapter.method="
        "{adapter.method} is not of that kind. Use adapter.method=lora",
    ),
    Rule(
        ("preference.stage=kto", "adapter.bias=all"),
        _is_labeled_over_a_changed_base,
        "preference.stage=kto compares with the base, which adapter.bias changes and "
        "adapter.name_or_path replaces. Leave them out; merge an earlier adapter first and give "
        "the merged model",
    ),
    Rule(
        ("preference.stage=kto", "training.sharding=fsdp2"),
        lambda recipe: (
            recipe.has_labels and (_is_sharded(recipe) or recipe.data.replay is not None)
        ),
        "training.sharding, training.deepspeed and data.replay cannot be used with "
        "preference.stage=kto. Leave them out",
    ),
    Rule(
        ("preference.stage=kto", "training.label_smoothing_factor=0.1"),
        lambda recipe: recipe.has_labels and recipe.training.label_smoothing_factor > 0,
        "training.label_smoothing_factor smooths the loss of answers, and preference.stage=kto "
        "has another loss. Leave it out",
    ),
    Rule(
        ("preference.stage=kto", "preference.loss=ipo"),
        lambda recipe: recipe.has_labels and recipe.preference.loss != "sigmoid",
        "preference.loss={preference.loss} is a loss of preference.stage=dpo, and "
        "preference.stage=kto has one of its own. Leave it out",
    ),
    Rule(
        (
            "preference.stage=kto",
            "training.per_device_train_batch_size=1",
            "training.gradient_accumulation_steps=1",
        ),
        lambda recipe: (
            recipe.has_labels
            and recipe.training.per_device_train_batch_size
            * recipe.training.gradient_accumulation_steps
            == 1
        ),
        "preference.stage=kto compares the rows of a step with each other, and a step has one. "
        "Use training.gradient_accumulation_steps=8 or more",
    ),
    Rule(
        ("preference.undesirable_weight=2",),
        lambda recipe: (
            not recipe.has_labels
            and (recipe.preference.desirable_weight, recipe.preference.undesirable_weight) != (1, 1)
        ),
        "preference.desirable_weight and preference.undesirable_weight weigh rows with labels, and "
        "preference.stage={preference.stage} has none. Leave them out, or use preference.stage=kto",
    ),
    Rule(
        ("model.add_tokens=[<x>]", "adapter.method=ia3"),
        lambda recipe: (
            bool(recipe.model.add_tokens) and not isinstance(recipe.adapter, LoraSection)
        ),
        "model.add_tokens trains the rows of new tokens beside a LoRA, and adapter.method="
        "{adapter.method} has no place for them. Use adapter.method=lora or qlora",
    ),
    Rule(
        ("model.add_tokens=[<x>]", "adapter.init_lora_weights=pissa"),
        lambda recipe: bool(recipe.model.add_tokens) and _takes_from_base(recipe),
        "model.add_tokens cannot be combined with adapter.init_lora_weights="
        "{adapter.init_lora_weights}, which is saved as a difference that has no place for rows. "
        "Leave one of them out",
    ),
    Rule(
        ("model.add_tokens=[<x>]", "training.sharding=fsdp2"),
        lambda recipe: bool(recipe.model.add_tokens) and _is_sharded(recipe),
        "model.add_tokens is not supported with training.{training.sharded_by}. Leave one of them "
        "out",
    ),
)


def _learns_blanks(recipe: "PretrainRecipe") -> bool:
    """Whether an objective lets tokens of a prefix attend to later ones."""
    return any(weight for name, weight in recipe.objective.weights().items() if name != "causal")


PRETRAINING_RULES: tuple[Rule["PretrainRecipe"], ...] = (
    Rule(
        ("objective.token=0", "objective.document=0"),
        lambda recipe: not any(recipe.objective.weights().values()),
        "objective.token, objective.sentence, objective.document and objective.causal are all 0, "
        "so there is nothing to learn. Give at least one of them, such as objective.causal=1",
    ),
    Rule(
        ("data.eval_fraction=0.1", "training.eval_metrics=exact"),
        lambda recipe: bool(recipe.training.eval_metrics),
        "training.eval_metrics scores answers to prompts, and pre-training has none. Leave it out",
    ),
    Rule(
        ("training.sharding=fsdp2",),
        _is_sharded,
        "training.{training.sharded_by} is not supported by pre-training. Leave it out",
    ),
    Rule(
        ("model.add_tokens=[<x>]",),
        lambda recipe: bool(recipe.model.add_tokens),
        "model.add_tokens is not supported by pre-training. Leave it out",
    ),
    Rule(
        ("model.config.num_layers=2", "adapter.method=lora"),
        lambda recipe: bool(recipe.model.config) and not isinstance(recipe.adapter, FullSection),
        "model.config makes a new model, whose random weights adapter.method={adapter.method} "
        "would leave untrained. Use adapter.method=full",
    ),
    Rule(
        ("model.attn_implementation=flash_attention_2",),
        lambda recipe: _learns_blanks(recipe) and recipe.model.attn_implementation != "packed",
        "model.attn_implementation={model.attn_implementation} does not let the context of a "
        "blank attend to later tokens, so the model would silently learn another objective. Use "
        "model.attn_implementation=packed, or objective.causal alone",
    ),
)


def document() -> str:
    """Write all rules as a Markdown table, for `docs/recipes.md`."""
    lines = ["| refused, for example | because |", "| --- | --- |"]
    lines += [f"| {_code(rule.example)} | {_plain(rule.message)} |" for rule in _all_rules()]
    return "\n".join(lines)


def _all_rules() -> Iterator["Rule[RunRecipe] | Rule[Recipe] | Rule[PretrainRecipe]"]:
    yield from RUN_RULES
    yield from FINE_TUNING_RULES
    yield from PRETRAINING_RULES


def _code(overrides: Sequence[str]) -> str:
    return ", ".join(f"`{override}`" for override in overrides)


def _plain(message: str) -> str:
    """Leave the values of a certain recipe out of a message, and mark the keys as code."""
    message = message.replace("{training.sharded_by}", "sharding or training.deepspeed")
    message = re.sub(r"=\{[^}]+\}| \(\{[^}]+\}\)", "", message)
    message = message.replace("{adapter.method}", "others")
    key = r"\b(?:model|data|adapter|training|checks|output|preference|objective)\.\w+(?:=\w+)?"
    return re.sub(key, lambda match: f"`{match[0]}`", message) + "."


if __name__ == "__main__":
    print(document())
