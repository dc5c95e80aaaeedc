"""Recipes of ms-swift: its YAML for `swift sft --config`, and the args.json that it writes.

Source: ms-swift 4.6, docs/source_en/Instruction/Command-line-parameters.md.
"""

from pathlib import Path
from typing import Any

from glmtune.errors import RecipeError
from glmtune.recipe.other_tools.converted import (
    TRAINER_DEFAULTS,
    Converted,
    convert_answers,
    convert_streaming,
    convert_training,
)
from glmtune.recipe.other_tools.data_sets import convert_held_out
from glmtune.recipe.other_tools.given import Given, said

DEFAULTS = {
    **TRAINER_DEFAULTS,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,  # it fills a step up to 16 rows
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "gradient_checkpointing": True,
    "logging_steps": 5,
    "eval_strategy": "steps",
}
FULL_LEARNING_RATE = 1e-5
RENAMED = {
    "model_id_or_path": "model", "train_type": "tuner_type", "sft_type": "tuner_type",
    "quantization_bit": "quant_bits", "quantization_method": "quant_method",
    "lora_target_modules": "target_modules", "lora_dropout_p": "lora_dropout",
    "batch_size": "per_device_train_batch_size", "val_dataset_sample": "",
    "init_lora_weights": "init_weights", "lora_plus_lr_ratio": "lorap_lr_ratio",
    "use_flash_attn": "attn_impl", "dtype": "torch_dtype", "neftune_alpha": "neftune_noise_alpha",
    "custom_train_dataset_path": "dataset", "custom_val_dataset_path": "val_dataset",
}  # fmt: skip
NOT_NEEDED = (
    "swift_version", "tuner_backend", "model_type", "truncation_strategy", "padding_free",
    "attn_impl", "quant_method", "dataset_num_proc", "load_from_cache_file", "use_hf", "task_type",
    "lora_dtype", "system", "split_dataset_ratio", "quant_bits", "check_model", "add_version",
    "create_checkpoint_symlink", "train_dataloader_shuffle", "dataloader_pin_memory",
)  # fmt: skip


def convert(result: Converted, given: Given, model: str | None, data_dir: Path | None) -> None:
    """Convert a recipe of ms-swift.

    Args:
        result: gets our sections.
        given: the keys of the file.
        model: the base model; None for that of the file.
        data_dir: the folder of local data sets; None for the working directory.

    Raises:
        RecipeError: it is for something that is not supported, or lacks model or data.
    """
    for old, new in RENAMED.items():
        if new:
            given.rename(old, new)
    by_hugging_face = given.flag("use_hf")
    named = given.text("model")
    if not (model or named):
        raise RecipeError("the recipe names no model. Give it: --model MODEL.")
    result.sections["model"]["name_or_path"] = model or named
    _convert_preference(result, given)
    _convert_data(result, given, data_dir, by_hugging_face=by_hugging_face)
    _convert_method(result, given)
    is_full = result.sections["adapter"]["method"] == "full"
    rate = FULL_LEARNING_RATE if is_full else DEFAULTS["learning_rate"]
    _convert_deepspeed(result, given)
    convert_answers(result, given)
    convert_streaming(result, given, "shuffle_buffer_size")
    if tokens := given.names("new_special_tokens"):
        result.sections["model"]["add_tokens"] = tokens
    convert_training(result, given, {**DEFAULTS, "learning_rate": rate})
    dtype = given.text("torch_dtype")
    if dtype and not is_full:
        result.sections["model"]["dtype"] = dtype
    elif dtype == "bfloat16" or given.flag("bf16"):
        result.sections["training"]["bf16"] = True
    given.take("bf16"), given.take("fp16")  # those of autocast, where the weights are half
    if "flash" in str(given.take("attn_impl", "")):
        result.sections["model"]["attn_implementation"] = "flash_attention_2"
    if (system := given.text("system")) is not None:
        result.not_converted.append(f"system: {said(system)}. Write it into the rows")
    for key in NOT_NEEDED:
        if key in given:
            given.take(key)
            result.not_needed.append(key)
    result.list_remaining(given)


def _convert_preference(result: Converted, given: Given) -> None:
    stage = given.text("rlhf_type")
    if stage is None:
        return
    if stage == "kto":
        judged = result.sections["preference"] = {"stage": "kto"}
        weights = {key: key for key in ("desirable_weight", "undesirable_weight")}
        given.move(judged, beta="beta", **weights)
        return
    if stage not in ("dpo", "simpo", "orpo"):
        raise RecipeError(
            f"rlhf_type: {said(stage)} is not supported; dpo, simpo, orpo and kto are."
        )
    preference = result.sections["preference"] = {"stage": "dpo"}
    if stage != "dpo":
        preference["loss"] = stage
    given.move(preference, loss_type="loss", beta="beta", simpo_gamma="simpo_gamma")


def _convert_data(
    result: Converted, given: Given, data_dir: Path | None, *, by_hugging_face: bool
) -> None:
    data = result.sections["data"]
    for theirs, ours in (("dataset", "train"), ("val_dataset", "eval")):
        names = [_place(name, data_dir, by_hugging_face) for name in given.names(theirs)]
        if names:
            data[ours] = names
    if "train" not in data:
        raise RecipeError("the recipe names no data: expected dataset: [NAME, ...].")
    if "max_length" in given:
        data["max_length"] = given.number("max_length", 1024)
    else:
        result.not_converted.append(
            "max_length, which is that of the model without one. Set data.max_length"
        )
    if given.text("truncation_strategy") == "left":
        data["overlong"] = "truncate_prompt"
    if columns := given.section("columns"):
        own = {columns.text(theirs): theirs for theirs in columns.names_left()}
        data["columns"] = {ours: theirs for ours, theirs in own.items() if ours}
    convert_held_out(result, given, "split_dataset_ratio")
    scale = given.text("loss_scale")
    if scale in ("all", "last_round"):
        data["train_on_prompt" if scale == "all" else "mask_history"] = True
    elif scale not in (None, "default"):
        result.not_converted.append(f"loss_scale: {said(scale)}, which has no counterpart here")


def _place(name: str, data_dir: Path | None, by_hugging_face: bool) -> str:
    """Return a local path, or the id of a data set with its hub."""
    for prefix in ("HF::", "hf::"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    name = name.removeprefix("MS::").removeprefix("ms::")
    path = name.partition("#")[0]
    is_local = "." in Path(path).name or path.startswith((".", "/")) or path.count("/") != 1
    if is_local:
        return str(data_dir / name) if data_dir else name
    return name if by_hugging_face else f"modelscope://{name}"


def _convert_method(result: Converted, given: Given) -> None:
    adapter = result.sections["adapter"]
    method = given.text("tuner_type", "lora")
    bits = given.number("quant_bits")
    if method not in ("lora", "full", "vera"):
        raise RecipeError(
            f"tuner_type: {said(method)} cannot be converted; lora, full and vera can."
        )
    adapter["method"] = "qlora" if bits and method == "lora" else method
    if method == "full":
        return
    if bits and method == "lora":
        adapter["quantization_bit"] = bits
    targets = given.names("target_modules")
    is_all = not targets or targets in (["all-linear"], ["ALL"], ["AUTO"], ["DEFAULT"])
    adapter["target_modules"] = "all-linear" if is_all else targets
    if extra := given.names("modules_to_save"):
        adapter["modules_to_save"] = extra
    if adapters := given.names("adapters"):
        adapter["name_or_path"] = adapters[0]
    if method == "vera":
        given.move(adapter, vera_rank="r", vera_dropout="vera_dropout", vera_d_initial="d_initial")
        return
    _convert_lora(given, adapter)


def _convert_lora(given: Given, adapter: dict[str, Any]) -> None:
    adapter |= {
        "r": given.number("lora_rank", 8),
        "lora_alpha": given.number("lora_alpha", 32),
        "lora_dropout": given.number("lora_dropout", 0.05),
    }
    given.move(adapter, use_rslora="use_rslora", use_dora="use_dora", lora_bias="bias")
    given.move(adapter, lorap_lr_ratio="loraplus_lr_ratio")
    weights = given.text("init_weights", "true")
    if weights and weights.lower() != "true":
        adapter["init_lora_weights"] = weights


def _convert_deepspeed(result: Converted, given: Given) -> None:
    """List the names of its own DeepSpeed configurations, which are files of its package."""
    if "deepspeed" in given:
        value = given.take("deepspeed")
        if isinstance(value, str) and value.endswith(".json"):
            result.sections["training"]["deepspeed"] = value
        else:
            result.not_converted.append(
                f"deepspeed: {said(value)}. Give a file, training.deepspeed=zero2.json, or "
                "training.sharding=fsdp2"
            )
