"""Convert the recipes of other tools to ours, and list what could not be converted.

    official        lora.yaml, sft.yaml, ptuning_v2.yaml of ChatGLM3's finetune_demo
    LLaMA-Factory   its YAML for `llamafactory-cli train`

Defaults of the other tool that differ from ours are written out. A value that is invalid in our
recipe is dropped and listed; it is never replaced by a similar one.

Source: THUDM/ChatGLM3, finetune_demo/configs; LLaMA-Factory 0.9.4, hparams; the defaults of
transformers.TrainingArguments.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from glmtune.errors import RecipeError
from glmtune.recipe.explain import keys_of
from glmtune.recipe.names import RENAMED
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.yaml_text import read_yaml

OFFICIAL, LLAMA_FACTORY = "ChatGLM3's finetune_demo", "LLaMA-Factory"

TRAINER_DEFAULTS = {  # of transformers, where they differ from ours
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": None,
    "load_best_model_at_end": False,
}

# Keys that do not affect what is learned here.
NOT_NEEDED = {
    "cache_dir", "data_shared_file_system", "dataloader_num_workers", "ddp_find_unused_parameters",
    "ddp_timeout", "disable_tqdm", "do_eval", "do_train", "group_by_length",
    "ignore_pad_token_for_loss", "include_num_input_tokens_seen", "inference_mode", "log_level",
    "logging_dir", "logging_first_step", "logging_strategy", "low_cpu_mem_usage", "model_revision",
    "neat_packing", "num_proc", "overwrite_cache", "packing", "per_device_eval_batch_size",
    "plot_loss", "preprocessing_batch_size", "preprocessing_num_workers", "remove_unused_columns",
    "save_only_model", "save_safetensors", "task_type", "trust_remote_code", "upcast_layernorm",
    "upcast_lmhead_output", "use_cache", "use_fast_tokenizer",
}  # fmt: skip


@dataclass(slots=True)
class Converted:
    """A recipe that was converted from another tool's.

    Attributes:
        tool: the name of the tool.
        sections: our recipe, with what was given or differs from our defaults.
        not_converted: what was dropped, with the reason or what to do.
        not_needed: keys that are not needed here.
    """

    tool: str
    sections: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {n: {} for n in ("model", "data", "adapter", "training", "output")}
    )
    not_converted: list[str] = field(default_factory=list)
    not_needed: list[str] = field(default_factory=list)

    def to_yaml(self, source: str) -> str:
        """Write the recipe as YAML, after a comment that lists what was not converted."""
        lines = [f"From {source}, a recipe of {self.tool}."]
        if self.not_converted:
            lines += ["Not converted:", *(f"- {item}" for item in self.not_converted)]
        comment = "".join(f"# {' '.join(line.split())}\n" for line in lines)
        given = {name: values for name, values in self.sections.items() if values}
        return comment + yaml.safe_dump(given, allow_unicode=True, sort_keys=False)


def convert_recipe(
    path: Path, *, model: str | None = None, data_dir: Path | None = None
) -> Converted:
    """Read a recipe of another tool.

    Args:
        path: its YAML file.
        model: the base model; None for the one in the file.
        data_dir: the folder of its data sets; None for the one in the file, or the working
            directory.

    Raises:
        RecipeError: the file cannot be read, is not of a known tool, or is for something that is
            not supported here.
    """
    tree = _read(path)
    if "training_args" in tree:
        result = _from_official(tree, model, data_dir or Path())
    elif {"finetuning_type", "stage"} & tree.keys() or {"dataset", "template"} <= tree.keys():
        result = _from_llama_factory(tree, model, data_dir)
    elif {"model", "data", "output"} <= tree.keys():
        raise RecipeError(f"{path} is already a recipe of glmtune: glmtune train {path}.")
    else:
        raise RecipeError(
            f"{path}: neither a recipe of {OFFICIAL} (it would have training_args) nor one of "
            f"{LLAMA_FACTORY} (finetuning_type, stage). Its keys are {', '.join(tree)}."
        )
    result.not_converted.append(
        "truncating long rows: those over data.max_length are dropped, unless data.overlong is "
        "changed"
    )
    _drop_invalid_values(result)
    _drop_deepspeed_if_refused(result)
    build_recipe(result.sections, source=str(path))
    return result


def _read(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "cannot be read: there is no such file.").tree
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(
            f"{path}: the file is {found}, expected keys and values of another tool's recipe."
        )
    return {str(key): value for key, value in tree.items()}


# ---- shared by both tools: transformers' arguments ---------------------------------------


def _convert_training(result: Converted, given: dict[str, Any]) -> None:
    """Convert transformers' own arguments, and remove them from `given`."""
    training, output = result.sections["training"], result.sections["output"]
    for old, (section, new) in RENAMED.items():
        if section == "training" and old in given:
            given.setdefault(new, given[old])
            del given[old]
    training |= TRAINER_DEFAULTS
    training["logging_steps"] = given.get("logging_steps", 500)
    training["eval_steps"] = given.pop("eval_steps", None) or training["logging_steps"]
    if given.get("max_steps", -1) == -1:
        given.pop("max_steps", None)
    if str(given.get("optim", "")).startswith("adamw_torch"):
        del given["optim"]
    for key in [key for key in given if key in keys_of("training") and key not in ("bf16", "fp16")]:
        training[key] = _number(given.pop(key))
    output["dir"] = given.pop("output_dir", "out")
    if (trackers := given.pop("report_to", None)) is not None:
        output["report_to"] = trackers
    for key, ours in (("run_name", "run_name"), ("overwrite_output_dir", "overwrite")):
        if key in given:
            output[ours] = given.pop(key)


def _number(value: Any) -> Any:
    """Convert numbers that YAML 1.1 reads as text, such as 3e-4 without a dot."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _list_remaining(result: Converted, given: Mapping[str, Any], prefix: str = "") -> None:
    """List the keys that were not converted."""
    for key, value in given.items():
        if key in NOT_NEEDED:
            result.not_needed.append(f"{prefix}{key}")
        elif value not in (None, False, "", [], {}):
            result.not_converted.append(f"{prefix}{key}: {value}, which has no counterpart here")


def _drop_invalid_values(result: Converted) -> None:
    """Drop single values that are invalid in our recipe."""
    try:
        Recipe.model_validate(result.sections)
    except ValidationError as error:
        for problem in error.errors():
            section, *path = map(str, problem["loc"] or ("",))  # none: a conflict between keys
            if section == "adapter":
                path = path[1:]  # the method
            values = result.sections.get(section, {})
            if path and path[0] in values:
                value = values.pop(path[0])
                result.not_converted.append(
                    f"{path[0]}: {value}. {section}.{path[0]} takes: {problem['msg'].lower()}"
                )


def _drop_deepspeed_if_refused(result: Converted) -> None:
    """Drop DeepSpeed's file if the recipe conflicts with it."""
    file = result.sections["training"].get("deepspeed")
    if file is None:
        return
    try:
        Recipe.model_validate(result.sections)
    except ValidationError as error:
        del result.sections["training"]["deepspeed"]
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        result.not_converted.append(f"deepspeed: {file}. {reason}")


# ---- the official demo -------------------------------------------------------------------


def _from_official(tree: dict[str, Any], model: str | None, data_dir: Path) -> Converted:
    result = Converted(OFFICIAL)
    sections = result.sections
    sections["model"]["name_or_path"] = model or "zai-org/chatglm3-6b"
    if model is None:
        result.not_converted.append(
            "the model, an argument of its command: zai-org/chatglm3-6b is used"
        )
    files = dict(tree.pop("data_config", None) or {})
    for theirs, ours in (("train_file", "train"), ("val_file", "eval")):
        if name := files.pop(theirs, None):
            sections["data"][ours] = str(data_dir / name)
    sections["data"].setdefault("train", str(data_dir / "train.json"))
    if name := files.pop("test_file", None):
        result.not_converted.append(f"test_file: {name}. Answer it by `glmtune predict {name}`")
    longest = (tree.pop("max_input_length", 512), tree.pop("max_output_length", 512))
    sections["data"]["max_length"] = sum(longest) + 1
    sections["training"]["average"] = "micro_batches"
    sections["training"]["gradient_checkpointing"] = True
    arguments = dict(tree.pop("training_args") or {})
    if arguments.pop("predict_with_generate", False):
        arguments.pop("generation_config", None)
        result.not_converted.append(
            "predict_with_generate: held-out rows are evaluated by their loss"
        )
    _convert_training(result, arguments)
    _convert_peft(result, tree.pop("peft_config", None))
    _list_remaining(result, arguments)
    _list_remaining(result, files, "data_config.")
    _list_remaining(result, tree)
    return result


def _convert_peft(result: Converted, config: Any) -> None:
    """Convert the section of peft's configuration; without one all weights are trained."""
    adapter = result.sections["adapter"]
    if not config:
        adapter["method"] = "full"
        return
    config = dict(config)
    peft_type = str(config.pop("peft_type", "LORA"))
    if peft_type == "LORA":
        adapter |= {"method": "lora", "lora_alpha": 8}
    elif peft_type == "PREFIX_TUNING":
        # The demo's loader builds ChatGLM's own prefix encoder from this, not peft's.
        adapter["method"] = "ptuning_v2"
        config["pre_seq_len"] = config.pop("num_virtual_tokens", None)
    else:
        raise RecipeError(
            f"peft_config.peft_type is {peft_type!r}; LORA and PREFIX_TUNING can be converted."
        )
    for key in [key for key in config if key in keys_of("adapter", adapter["method"])]:
        adapter[key] = _number(config.pop(key))
    _list_remaining(result, config, "peft_config.")


# ---- LLaMA-Factory -----------------------------------------------------------------------


def _from_llama_factory(
    given: dict[str, Any], model: str | None, data_dir: Path | None
) -> Converted:
    result = Converted(LLAMA_FACTORY)
    stage = given.pop("stage", "sft")
    if stage == "pt":
        raise RecipeError("stage: pt is pre-training; see docs/pretraining.md for its recipe.")
    if stage not in ("sft", "dpo"):
        raise RecipeError(f"stage: {stage} is not supported; sft and dpo are.")
    if stage == "dpo":
        preference = result.sections["preference"] = {"stage": "dpo"}
        _move(given, preference, pref_loss="loss", pref_beta="beta", simpo_gamma="simpo_gamma")
    named = given.pop("model_name_or_path", None)
    if not (model or named):
        raise RecipeError("the recipe names no model. Give it: --model MODEL.")
    result.sections["model"]["name_or_path"] = model or named
    _convert_llama_factory_data(result, given, data_dir)
    _convert_llama_factory_method(result, given)
    checkpointing = not given.pop("disable_gradient_checkpointing", False)
    result.sections["training"]["gradient_checkpointing"] = checkpointing
    _convert_training(result, given)
    result.sections["output"].setdefault("report_to", "none")
    _convert_precision(result, given)
    attention = given.pop("flash_attn", "auto")
    if attention == "fa2":
        result.sections["model"]["attn_implementation"] = "flash_attention_2"
    given.pop("template", None)  # the model's own is used
    _list_remaining(result, given)
    return result


def _convert_llama_factory_method(result: Converted, given: dict[str, Any]) -> None:
    adapter = result.sections["adapter"]
    method = given.pop("finetuning_type", "lora")
    bits = given.pop("quantization_bit", None)
    if method not in ("lora", "oft", "freeze", "full"):
        raise RecipeError(f"finetuning_type: {method} cannot be converted.")
    adapter["method"] = "qlora" if bits and method == "lora" else method
    if adapter["method"] == "qlora":
        adapter["quantization_bit"] = bits
        _move(given, adapter, quantization_method="quantization_method")
        _move(given, adapter, double_quantization="double_quantization")
    elif bits:
        result.not_converted.append(f"quantization_bit: {bits} with finetuning_type: {method}")
    if method in ("lora", "oft"):
        target = given.pop(f"{method}_target", "all")
        adapter["target_modules"] = "all-linear" if target == "all" else _names(target)
        if extra := given.pop("additional_target", None):
            adapter["modules_to_save"] = _names(extra)
        _move(given, adapter, adapter_name_or_path="name_or_path")
    if method == "lora":
        rank = given.pop("lora_rank", 8)
        adapter |= {"r": rank, "lora_alpha": given.pop("lora_alpha", None) or 2 * rank}
        for key in ("lora_dropout", "use_rslora", "use_dora", "loraplus_lr_ratio"):
            _move(given, adapter, **{key: key})
        steps = given.pop("pissa_iter", 16)
        if given.pop("pissa_init", False):
            adapter["init_lora_weights"] = "pissa" if steps == -1 else f"pissa_niter_{steps}"
            given.pop("pissa_convert", None)  # ours is always converted
    elif method == "oft":
        _move(given, adapter, oft_block_size="oft_block_size", module_dropout="module_dropout")
    elif method == "freeze":
        adapter["trainable_layers"] = given.pop("freeze_trainable_layers", 2)
        if extra := given.pop("freeze_extra_modules", None):
            adapter["trainable_modules"] = _names(extra)
        modules = given.pop("freeze_trainable_modules", "all")
        if modules != "all":
            result.not_converted.append(
                f"freeze_trainable_modules: {modules}. Complete layers are trained, or the modules "
                "of all layers that adapter.trainable_modules names"
            )


def _convert_precision(result: Converted, given: dict[str, Any]) -> None:
    """Convert half precision: of the weights if they are frozen, else of autocast."""
    trains_weights = result.sections["adapter"]["method"] in ("full", "freeze")
    if given.pop("bf16", False):
        if trains_weights:
            result.sections["training"]["bf16"] = True
        else:
            result.sections["model"]["dtype"] = "bfloat16"
    if given.pop("fp16", False):
        if trains_weights:
            result.sections["training"]["fp16"] = True
        else:
            result.sections["model"]["dtype"] = "float16"


def _convert_llama_factory_data(
    result: Converted, given: dict[str, Any], data_dir: Path | None
) -> None:
    data = result.sections["data"]
    folder = data_dir or Path(given.get("dataset_dir") or "data")
    given.pop("dataset_dir", None)
    sample = given.pop("max_samples", None)
    layouts = []
    for theirs, ours in (("dataset", "train"), ("eval_dataset", "eval")):
        paths = []
        for name in _names(given.pop(theirs, None) or ()):
            path, layout = _find_data_set(result, folder, name)
            paths.append(f"{path}#{sample}" if sample else path)
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
    data["max_length"] = given.pop("cutoff_len", 2048)
    held_out = float(given.pop("val_size", None) or 0)
    if 0 < held_out < 1:
        data["eval_fraction"] = held_out
    elif held_out:
        result.not_converted.append(
            f"val_size: {held_out:.0f} rows. Set data.eval_fraction instead"
        )


def _find_data_set(result: Converted, folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    """Look up the path and the columns of a data set in dataset_info.json."""
    register = folder / "dataset_info.json"
    entries: Any = {}
    if register.is_file():
        try:
            entries = json.loads(register.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"{register}: cannot be read as JSON: {error}") from None
    entry = entries.get(name)
    if not isinstance(entry, dict):
        result.not_converted.append(
            f"the path of data set {name}: it is not in {register}. Set data.train and data.eval"
        )
        return f"{folder / name}.json", {}
    for key in ("subset", "folder", "script_url"):
        if entry.get(key):
            result.not_converted.append(f"{name}: {key}: {entry[key]} of {register}")
    if file := entry.get("file_name"):
        path = str(folder / file)
    else:
        hub, modelscope = entry.get("hf_hub_url"), entry.get("ms_hub_url")
        path = hub or (f"modelscope://{modelscope}" if modelscope else f"{folder / name}.json")
    return path, dict(_layout(result, entry))


def _layout(result: Converted, entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return format, columns and roles of a data set, by our keys."""
    theirs = entry.get("columns") or {}
    if entry.get("formatting", "alpaca") == "alpaca":
        form, names = "alpaca", {"prompt": "instruction", "query": "input", "response": "output"}
    else:
        tags = {"role_tag": "from", "content_tag": "value"} | (entry.get("tags") or {})
        by_role = (tags["role_tag"], tags["content_tag"]) == ("role", "content")
        form = "openai" if by_role else "sharegpt"
        names = {"messages": "messages" if by_role else "conversations"}
        if not by_role and (tags["role_tag"], tags["content_tag"]) != ("from", "value"):
            result.not_converted.append(
                f"tags: {entry['tags']}. Expected from and value, or role and content"
            )
        roles = {tags[tag]: ours for tag, ours in ROLE_TAGS.items() if tag in tags}
        if roles := {their: ours for their, ours in roles.items() if their not in KNOWN_ROLES}:
            yield "roles", roles
    columns = {names.get(key, key): column for key, column in theirs.items()}
    if columns := {ours: column for ours, column in columns.items() if ours != column}:
        yield "format", form
        yield "columns", columns


ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
KNOWN_ROLES = ("human", "user", "gpt", "assistant", "observation", "function_call", "system")


def _move(given: dict[str, Any], values: dict[str, Any], **names: str) -> None:
    """Move keys from `given` to `values` under our names."""
    for theirs, ours in names.items():
        if given.get(theirs) is not None:
            values[ours] = _number(given.pop(theirs))


def _names(value: Any) -> list[str]:
    """Split `a,b`, or copy a list."""
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts if str(part).strip()]
