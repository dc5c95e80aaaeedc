"""Recipes of Axolotl: its YAML for `axolotl train`.

Source: Axolotl 0.21, docs/config-reference.
"""

from pathlib import Path
from typing import Any

from glmtune.errors import RecipeError
from glmtune.recipe.other_tools.converted import (
    TRAINER_DEFAULTS,
    Converted,
    convert_streaming,
    convert_training,
)
from glmtune.recipe.other_tools.data_sets import convert_held_out
from glmtune.recipe.other_tools.given import Given, said
from glmtune.recipe.other_tools.llama_factory import convert_precision

DEFAULTS = {
    **TRAINER_DEFAULTS,
    "per_device_train_batch_size": 1,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "logging_steps": 1,
}
DEFAULT_LENGTH = 512
RENAMED = {
    "micro_batch_size": "per_device_train_batch_size", "num_epochs": "num_train_epochs",
    "lr_scheduler": "lr_scheduler_type", "optimizer": "optim", "wandb_name": "run_name",
    "wandb_run_id": "run_name", "lora_modules_to_save": "modules_to_save",
    "lora_model_dir": "name_or_path", "peft_use_dora": "use_dora", "peft_use_rslora": "use_rslora",
    "peft_init_lora_weights": "init_lora_weights", "lora_r": "r",
}  # fmt: skip
NOT_NEEDED = (
    "model_type", "tokenizer_type", "tokenizer_config", "base_model_config", "strict",
    "dataset_prepared_path", "pad_to_sequence_len", "sample_packing", "eval_sample_packing",
    "flash_attention", "sdp_attention", "xformers_attention", "tf32", "wandb_project",
    "wandb_entity", "wandb_watch", "wandb_log_model", "chat_template", "special_tokens",
    "gradient_checkpointing_kwargs", "local_rank", "is_llama_derived_model", "train_on_inputs",
    "lora_fan_in_fan_out", "plugins", "hub_model_id", "lora_target_linear", "load_in_4bit",
    "load_in_8bit", "bnb_config_kwargs", "attn_implementation", "lora_mlp_kernel",
    "lora_qkv_kernel", "lora_o_kernel", "auto_resume_from_checkpoints",
)  # fmt: skip


def convert(result: Converted, given: Given, model: str | None, data_dir: Path | None) -> None:
    """Convert a recipe of Axolotl.

    Args:
        result: gets our sections.
        given: the keys of the file.
        model: the base model; None for that of the file.
        data_dir: the folder of local data sets; None for the working directory.

    Raises:
        RecipeError: it is for something that is not supported, or lacks model or data.
    """
    named = given.text("base_model")
    if not (model or named):
        raise RecipeError("the recipe names no model. Give it: --model MODEL.")
    result.sections["model"]["name_or_path"] = model or named
    for old, new in RENAMED.items():
        given.rename(old, new)
    _convert_preference(result, given)
    _convert_data(result, given, data_dir)
    _convert_method(result, given)
    if given.flag("flash_attention") or given.take("attn_implementation") == "flash_attention_2":
        result.sections["model"]["attn_implementation"] = "flash_attention_2"
    if given.text("wandb_project"):
        result.sections["output"]["report_to"] = "wandb"
    if given.flag("train_on_inputs"):
        result.sections["data"]["train_on_prompt"] = True
    if tokens := given.names("tokens"):
        result.sections["model"]["add_tokens"] = tokens
    convert_streaming(result, given, "streaming_multipack_buffer_size")
    how_often = _how_often(result, given)
    convert_training(result, given, {**DEFAULTS, **how_often})
    result.sections["output"].setdefault("report_to", "none")
    convert_precision(result, given)
    for key in NOT_NEEDED:
        if key in given:
            given.take(key)
            result.not_needed.append(key)
    result.list_remaining(given)


def _convert_preference(result: Converted, given: Given) -> None:
    stage = given.text("rl")
    if stage is None:
        return
    if stage == "kto":
        judged = result.sections["preference"] = {"stage": "kto"}
        given.move(
            judged,
            rl_beta="beta",
            kto_desirable_weight="desirable_weight",
            kto_undesirable_weight="undesirable_weight",
        )
        return
    if stage not in ("dpo", "ipo", "simpo", "orpo"):
        raise RecipeError(f"rl: {said(stage)} is not supported; dpo, ipo, simpo, orpo and kto are.")
    preference = result.sections["preference"] = {"stage": "dpo"}
    if stage != "dpo":
        preference["loss"] = stage
    given.move(preference, rl_beta="beta", orpo_alpha="beta", simpo_gamma="simpo_gamma")


def _convert_data(result: Converted, given: Given, data_dir: Path | None) -> None:
    data = result.sections["data"]
    for theirs, ours in (("datasets", "train"), ("test_datasets", "eval")):
        paths = _paths(result, theirs, given.take(theirs, []), data_dir)
        if paths:
            data[ours] = paths
    if "train" not in data:
        raise RecipeError("the recipe names no data: expected datasets: with a path each.")
    data["max_length"] = given.number("sequence_len", DEFAULT_LENGTH)
    convert_held_out(result, given, "val_set_size")


def _paths(result: Converted, key: str, entries: Any, data_dir: Path | None) -> list[str]:
    """Return the path of every data set; what it says about columns and roles is listed."""
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict):
            result.not_converted.append(f"{key}: {said(entry)}, where keys were expected")
            continue
        one = Given(entry, result.not_converted, f"{key}.")
        name = one.text("data_files") if isinstance(entry.get("data_files"), str) else None
        path = name or one.text("path")
        for known in ("type", "ds_type", "path", "chat_template"):
            one.take(known)  # the format is detected from the columns
        result.list_remaining(one)
        if path:
            is_local = "." in Path(path).name and data_dir is not None
            found.append(str(data_dir / path) if data_dir and is_local else path)
    return found


def _convert_method(result: Converted, given: Given) -> None:
    adapter = result.sections["adapter"]
    method = given.text("adapter", "full")
    if method not in ("lora", "qlora", "full"):
        raise RecipeError(f"adapter: {said(method)} cannot be converted; lora and qlora can.")
    eight, four = given.flag("load_in_8bit"), given.flag("load_in_4bit")
    if method == "lora" and (eight or four):
        method = "qlora"
    adapter["method"] = method
    if method == "full":
        return
    if method == "qlora":
        adapter["quantization_bit"] = 8 if eight else 4
    targets = given.names("lora_target_modules")
    if given.flag("lora_target_linear") or not targets:
        adapter["target_modules"] = "all-linear"
    else:
        adapter["target_modules"] = targets
    names = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "loraplus_lr_ratio")
    given.move(adapter, **{name: name for name in (*names, "init_lora_weights", "name_or_path")})
    if layers := given.take("peft_layers_to_transform"):
        adapter["layers_to_transform"] = layers
    if extra := given.names("modules_to_save"):
        adapter["modules_to_save"] = extra


def _how_often(result: Converted, given: Given) -> dict[str, Any]:
    """Convert evaluations and checkpoints per epoch, of which ours has one."""
    found = {}
    for key, ours in (("evals_per_epoch", "eval"), ("saves_per_epoch", "save")):
        times = given.number(key)
        if times is not None and times != 1:
            result.not_converted.append(
                f"{key}: {times}. There is one; or set training.{ours}_strategy=steps and "
                f"training.{ours}_steps"
            )
        if f"{ours}_steps" in given:
            found[f"{ours}_strategy"] = "steps"
    return found
