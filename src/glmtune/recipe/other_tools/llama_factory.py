"""Recipes of LLaMA-Factory: its YAML for `llamafactory-cli train`, with its dataset_info.json.

Source: LLaMA-Factory 0.9.5, hparams and data/README.md.
"""

from pathlib import Path
from typing import Any

from glmtune.errors import RecipeError
from glmtune.recipe.other_tools.converted import (
    Converted,
    convert_answers,
    convert_streaming,
    convert_training,
)
from glmtune.recipe.other_tools.data_sets import DataSets, convert_held_out
from glmtune.recipe.other_tools.given import Given, said

METHODS = ("lora", "oft", "freeze", "full")


def convert(result: Converted, given: Given, model: str | None, data_dir: Path | None) -> None:
    """Convert a recipe of LLaMA-Factory.

    Args:
        result: gets our sections.
        given: the keys of the file.
        model: the base model; None for that of the file.
        data_dir: the folder of dataset_info.json; None for that of the file.

    Raises:
        RecipeError: it is for a stage or a method that is not supported, or lacks model or data.
    """
    stage = given.text("stage", "sft")
    if stage == "pt":
        raise RecipeError("stage: pt is pre-training; see docs/pretraining.md for its recipe.")
    if stage not in ("sft", "dpo", "kto"):
        raise RecipeError(f"stage: {said(stage)} is not supported; sft, dpo and kto are.")
    if stage == "kto":
        judged = result.sections["preference"] = {"stage": "kto"}
        given.move(
            judged,
            pref_beta="beta",
            kto_chosen_weight="desirable_weight",
            kto_rejected_weight="undesirable_weight",
        )
    if stage == "dpo":
        preference = result.sections["preference"] = {"stage": "dpo"}
        given.move(preference, pref_loss="loss", pref_beta="beta", simpo_gamma="simpo_gamma")
    named = given.text("model_name_or_path")
    if not (model or named):
        raise RecipeError("the recipe names no model. Give it: --model MODEL.")
    result.sections["model"]["name_or_path"] = model or named
    _convert_data(result, given, data_dir)
    _convert_method(result, given)
    checkpointing = not given.flag("disable_gradient_checkpointing")
    result.sections["training"]["gradient_checkpointing"] = checkpointing
    convert_answers(result, given)
    convert_streaming(result, given, "buffer_size")
    if tokens := [*given.names("add_tokens"), *_special_tokens(given)]:
        result.sections["model"]["add_tokens"] = tokens
    convert_training(result, given)
    result.sections["output"].setdefault("report_to", "none")
    convert_precision(result, given)
    if given.take("flash_attn") == "fa2":
        result.sections["model"]["attn_implementation"] = "flash_attention_2"
    result.list_remaining(given)


def _special_tokens(given: Given) -> list[str]:
    given.rename("new_special_tokens", "add_special_tokens")  # its name in earlier releases
    return given.names("add_special_tokens")


def _convert_method(result: Converted, given: Given) -> None:
    adapter = result.sections["adapter"]
    method = given.text("finetuning_type", "lora")
    bits = given.number("quantization_bit")
    if method not in METHODS:
        raise RecipeError(
            f"finetuning_type: {said(method)} cannot be converted; {', '.join(METHODS)} can."
        )
    adapter["method"] = "qlora" if bits and method == "lora" else method
    if adapter["method"] == "qlora":
        adapter["quantization_bit"] = bits
        given.move(adapter, quantization_method="quantization_method")
        given.move(adapter, double_quantization="double_quantization")
    elif bits:
        result.not_converted.append(f"quantization_bit: {bits} with finetuning_type: {method}")
    if method in ("lora", "oft"):
        target = given.names(f"{method}_target") or ["all"]
        adapter["target_modules"] = "all-linear" if target == ["all"] else target
        if extra := given.names("additional_target"):
            adapter["modules_to_save"] = extra
        given.move(adapter, adapter_name_or_path="name_or_path")
    if method == "lora":
        _convert_lora(given, adapter)
    elif method == "oft":
        given.move(adapter, oft_block_size="oft_block_size", module_dropout="module_dropout")
    elif method == "freeze":
        _convert_freeze(result, given)
    others = tuple(f"{name}_" for name in (*METHODS, "pissa") if name != method)
    for key in given.names_left():
        if key.startswith(others) and given.take(key) is not None:
            result.not_needed.append(key)  # of a method that the recipe does not use


def _convert_lora(given: Given, adapter: dict[str, Any]) -> None:
    rank = given.number("lora_rank", 8)
    adapter |= {"r": rank, "lora_alpha": given.number("lora_alpha") or 2 * rank}
    for key in ("lora_dropout", "use_rslora", "use_dora", "loraplus_lr_ratio"):
        given.move(adapter, **{key: key})
    steps = given.number("pissa_iter", 16)
    if given.flag("pissa_init"):
        adapter["init_lora_weights"] = "pissa" if steps == -1 else f"pissa_niter_{steps}"
        given.take("pissa_convert")  # ours is always converted


def _convert_freeze(result: Converted, given: Given) -> None:
    adapter = result.sections["adapter"]
    adapter["trainable_layers"] = given.number("freeze_trainable_layers", 2)
    if extra := given.names("freeze_extra_modules"):
        adapter["trainable_modules"] = extra
    modules = given.names("freeze_trainable_modules") or ["all"]
    if modules != ["all"]:
        result.not_converted.append(
            f"freeze_trainable_modules: {', '.join(modules)}. Complete layers are trained, or the "
            "modules of all layers that adapter.trainable_modules names"
        )


def convert_precision(result: Converted, given: Given) -> None:
    """Convert half precision: of the weights if they are frozen, else of autocast."""
    trains_weights = result.sections["adapter"]["method"] in ("full", "freeze")
    for key, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        if given.flag(key):
            if trains_weights:
                result.sections["training"][key] = True
            else:
                result.sections["model"]["dtype"] = dtype


def _convert_data(result: Converted, given: Given, data_dir: Path | None) -> None:
    data = result.sections["data"]
    folder = data_dir or Path(given.text("dataset_dir") or "data")
    given.take("dataset_dir")
    data_sets = DataSets(result, folder)
    most = given.number("max_samples")
    layouts: list[dict[str, Any]] = []
    for theirs, ours in (("dataset", "train"), ("eval_dataset", "eval")):
        paths = []
        for name in given.names(theirs):
            path, layout = data_sets.find(name)
            paths.append(f"{path}#{most:.0f}" if most and "#" not in path else path)
            layouts.append(layout)
        if paths:
            data[ours] = paths
    if "train" not in data:
        raise RecipeError("the recipe names no data: expected dataset: NAME[,NAME].")
    if any(layout != layouts[0] for layout in layouts):
        result.not_converted.append(
            "the columns of its data sets, which differ between them. data.columns applies to all: "
            "rename the columns in the files"
        )
    else:
        data |= layouts[0]
    data["max_length"] = given.number("cutoff_len", 2048)
    for key in ("train_on_prompt", "mask_history"):
        if given.flag(key):
            data[key] = True
    convert_held_out(result, given, "val_size")
    _convert_mixture(result, given)


def _convert_mixture(result: Converted, given: Given) -> None:
    """List how data sets are interleaved, for which the sources here have weights."""
    strategy, shares = given.text("mix_strategy", "concat"), given.names("interleave_probs")
    if strategy != "concat" and len(result.sections["data"]["train"]) > 1:
        result.not_converted.append(
            f"mix_strategy: {said(strategy)} ({', '.join(shares) or 'in turn'}). Give the sources "
            "a weight, which is how often an epoch learns their rows: data.train: [{path: ..., "
            "weight: 2}, ...]"
        )
