"""A recipe of another tool -> ours, with a list of what could not be carried over.

    official        lora.yaml, sft.yaml, ptuning_v2.yaml of ChatGLM3's finetune_demo
    LLaMA-Factory   its YAML for `llamafactory-cli train`

What the other tool takes for granted is written out, since our defaults are others. A value that
our recipe does not take is left out and listed, never bent into something near it.

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
from glmtune.recipe.reading import RENAMED, build_recipe, keys_of, read_yaml
from glmtune.recipe.recipe import Recipe

OFFICIAL, LLAMA_FACTORY = "ChatGLM3's finetune_demo", "LLaMA-Factory"

TRAINER_DEFAULTS = {  # those of transformers that differ from ours
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

# Keys that change nothing of what is learned here, whatever they say.
NEEDLESS = {
    *(
        "trust_remote_code",
        "use_fast_tokenizer",
        "cache_dir",
        "model_revision",
        "low_cpu_mem_usage",
    ),
    *("do_train", "do_eval", "remove_unused_columns", "overwrite_cache", "num_proc", "task_type"),
    *("preprocessing_num_workers", "dataloader_num_workers", "preprocessing_batch_size"),
    *("plot_loss", "log_level", "logging_strategy", "logging_dir", "logging_first_step"),
    *("ddp_timeout", "ddp_find_unused_parameters", "save_only_model", "save_safetensors"),
    *("packing", "neat_packing", "ignore_pad_token_for_loss", "group_by_length", "disable_tqdm"),
    *("per_device_eval_batch_size", "inference_mode", "include_num_input_tokens_seen"),
    *("data_shared_file_system", "use_cache", "upcast_layernorm", "upcast_lmhead_output"),
}


@dataclass(slots=True)
class Converted:
    """A recipe that was read from another tool's.

    Attributes:
        kind: which tool's.
        sections: our recipe, only with what was said or differs from our defaults.
        left_out: what was not carried over, and why or what to do.
        needless: keys that are not needed here.
    """

    kind: str
    sections: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {n: {} for n in ("model", "data", "adapter", "training", "output")}
    )
    left_out: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)

    def to_yaml(self, source: str) -> str:
        """Write it as a file, with what is missing from it on top."""
        said = [f"From {source}, a recipe of {self.kind}."]
        said += ["Not carried over:"] * bool(self.left_out) + [f"- {n}" for n in self.left_out]
        comment = "".join(f"# {' '.join(line.split())}\n" for line in said)
        given = {name: values for name, values in self.sections.items() if values}
        return comment + yaml.safe_dump(given, allow_unicode=True, sort_keys=False)


def convert_recipe(
    path: Path, *, model: str | None = None, data_dir: Path | None = None
) -> Converted:
    """Read a recipe of another tool.

    Args:
        path: its YAML file.
        model: the base model; None takes the one that the file names.
        data_dir: where its data sets lie; None is where the file says, or the working directory.

    Raises:
        RecipeError: it cannot be read, is of no tool that we know, or is for something that we
            do not do.
    """
    tree = _read(path)
    if "training_args" in tree:
        result = _from_official(tree, model, data_dir or Path())
    elif {"finetuning_type", "stage"} & tree.keys() or {"dataset", "template"} <= tree.keys():
        result = _from_llama_factory(tree, model, data_dir)
    elif {"model", "data", "output"} <= tree.keys():
        raise RecipeError(f"{path} is a recipe of ours already: glmtune train {path}.")
    else:
        raise RecipeError(
            f"{path}: neither a recipe of {OFFICIAL} (it would have training_args) nor one of "
            f"{LLAMA_FACTORY} (finetuning_type, stage). Its keys are {', '.join(tree)}."
        )
    result.left_out.append(
        "cutting long rows: those over data.max_length are left out, unless data.overlong says else"
    )
    _drop_what_is_not_taken(result)
    _drop_deepspeed_where_it_is_refused(result)
    build_recipe(result.sections, source=str(path))
    return result


def _read(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "cannot be read, since there is no such file.")
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(
            f"{path}: the file is {found}, expected keys and values of another tool's recipe."
        )
    return {str(key): value for key, value in tree.items()}


# ---- what both have: transformers' arguments ---------------------------------------------


def _take_training(result: Converted, given: dict[str, Any]) -> None:
    """Carry over what transformers' own arguments say; what is taken leaves `given`."""
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
    """Read what YAML 1.1 takes for text: 3e-4, which lacks a dot."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _leave_out(result: Converted, given: Mapping[str, Any], where: str = "") -> None:
    """List what nothing was made of."""
    for key, value in given.items():
        if key in NEEDLESS:
            result.needless.append(f"{where}{key}")
        elif value not in (None, False, "", [], {}):
            result.left_out.append(f"{where}{key}: {value}, which has no counterpart here")


def _drop_what_is_not_taken(result: Converted) -> None:
    """Leave out single values that our recipe refuses."""
    try:
        Recipe.model_validate(result.sections)
    except ValidationError as error:
        for problem in error.errors():
            section, *path = map(str, problem["loc"] or ("",))  # none: of the recipe as a whole
            if section == "adapter":
                path = path[1:]  # the method
            values = result.sections.get(section, {})
            if path and path[0] in values:
                value = values.pop(path[0])
                said = problem["msg"].lower()
                result.left_out.append(f"{path[0]}: {value}. {section}.{path[0]} takes: {said}")


def _drop_deepspeed_where_it_is_refused(result: Converted) -> None:
    """Leave out DeepSpeed's file where nothing would stand against it but the file."""
    file = result.sections["training"].get("deepspeed")
    if file is None:
        return
    try:
        Recipe.model_validate(result.sections)
    except ValidationError as error:
        del result.sections["training"]["deepspeed"]
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        result.left_out.append(f"deepspeed: {file}. {said}")


# ---- the official demo -------------------------------------------------------------------


def _from_official(tree: dict[str, Any], model: str | None, data_dir: Path) -> Converted:
    result = Converted(OFFICIAL)
    sections = result.sections
    sections["model"]["name_or_path"] = model or "zai-org/chatglm3-6b"
    if model is None:
        result.left_out.append(
            "the model, an argument of its command: zai-org/chatglm3-6b is taken"
        )
    files = dict(tree.pop("data_config", None) or {})
    for theirs, ours in (("train_file", "train"), ("val_file", "eval")):
        if name := files.pop(theirs, None):
            sections["data"][ours] = str(data_dir / name)
    sections["data"].setdefault("train", str(data_dir / "train.json"))
    if name := files.pop("test_file", None):
        result.left_out.append(f"test_file: {name}. Answer it by `glmtune predict {name}`")
    longest = (tree.pop("max_input_length", 512), tree.pop("max_output_length", 512))
    sections["data"]["max_length"] = sum(longest) + 1
    sections["training"]["average"] = "micro_batches"
    sections["training"]["gradient_checkpointing"] = True
    arguments = dict(tree.pop("training_args") or {})
    if arguments.pop("predict_with_generate", False):
        arguments.pop("generation_config", None)
        result.left_out.append("predict_with_generate: held-out rows are judged by their loss")
    _take_training(result, arguments)
    _take_peft(result, tree.pop("peft_config", None))
    _leave_out(result, arguments)
    _leave_out(result, files, "data_config.")
    _leave_out(result, tree)
    return result


def _take_peft(result: Converted, config: Any) -> None:
    """Carry over the section that is peft's configuration; without one all weights are trained."""
    adapter = result.sections["adapter"]
    if not config:
        adapter["method"] = "full"
        return
    config = dict(config)
    peft_type = str(config.pop("peft_type", "LORA"))
    if peft_type == "LORA":
        adapter |= {"method": "lora", "lora_alpha": 8}
    elif peft_type == "PREFIX_TUNING":
        # Its loader makes ChatGLM's own prefix encoder of this, and not peft's.
        adapter["method"] = "ptuning_v2"
        config["pre_seq_len"] = config.pop("num_virtual_tokens", None)
    else:
        raise RecipeError(
            f"peft_config.peft_type is {peft_type!r}; LORA and PREFIX_TUNING can be converted."
        )
    for key in [key for key in config if key in keys_of("adapter", adapter["method"])]:
        adapter[key] = _number(config.pop(key))
    _leave_out(result, config, "peft_config.")


# ---- LLaMA-Factory -----------------------------------------------------------------------


def _from_llama_factory(
    given: dict[str, Any], model: str | None, data_dir: Path | None
) -> Converted:
    result = Converted(LLAMA_FACTORY)
    stage = given.pop("stage", "sft")
    if stage == "pt":
        raise RecipeError("stage: pt is pre-training; see docs/pretraining.md for its recipe.")
    if stage not in ("sft", "dpo"):
        raise RecipeError(f"stage: {stage} cannot be trained here; sft and dpo can.")
    if stage == "dpo":
        preference = result.sections["preference"] = {"stage": "dpo"}
        _move(given, preference, pref_loss="loss", pref_beta="beta", simpo_gamma="simpo_gamma")
    named = given.pop("model_name_or_path", None)
    if not (model or named):
        raise RecipeError("the recipe names no model. Give it: --model MODEL.")
    result.sections["model"]["name_or_path"] = model or named
    _take_llama_factory_data(result, given, data_dir)
    _take_llama_factory_method(result, given)
    checkpointing = not given.pop("disable_gradient_checkpointing", False)
    result.sections["training"]["gradient_checkpointing"] = checkpointing
    _take_training(result, given)
    result.sections["output"].setdefault("report_to", "none")
    _take_precision(result, given)
    attention = given.pop("flash_attn", "auto")
    if attention == "fa2":
        result.sections["model"]["attn_implementation"] = "flash_attention_2"
    given.pop("template", None)  # a model's own is used
    _leave_out(result, given)
    return result


def _take_llama_factory_method(result: Converted, given: dict[str, Any]) -> None:
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
        result.left_out.append(f"quantization_bit: {bits} with finetuning_type: {method}")
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
            given.pop("pissa_convert", None)  # ours always is
    elif method == "oft":
        _move(given, adapter, oft_block_size="oft_block_size", module_dropout="module_dropout")
    elif method == "freeze":
        adapter["trainable_layers"] = given.pop("freeze_trainable_layers", 2)
        if extra := given.pop("freeze_extra_modules", None):
            adapter["trainable_modules"] = _names(extra)
        modules = given.pop("freeze_trainable_modules", "all")
        if modules != "all":
            result.left_out.append(
                f"freeze_trainable_modules: {modules}. Whole layers are trained, or what "
                "adapter.trainable_modules names in all layers"
            )


def _take_precision(result: Converted, given: dict[str, Any]) -> None:
    """Half precision is of frozen weights; where weights are trained it is of the arithmetic."""
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


def _take_llama_factory_data(
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
        result.left_out.append(
            "the columns of its data sets, which differ from one to the other. data.columns is "
            "for all of them: rename the columns in the files"
        )
    else:
        data |= layouts[0]
    data["max_length"] = given.pop("cutoff_len", 2048)
    held_out = float(given.pop("val_size", None) or 0)
    if 0 < held_out < 1:
        data["eval_fraction"] = held_out
    elif held_out:
        result.left_out.append(f"val_size: {held_out:.0f} rows. Give data.eval_fraction a share")


def _find_data_set(result: Converted, folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    """Look a name up in dataset_info.json: where its rows are, and how their columns are called."""
    register = folder / "dataset_info.json"
    entries: Any = {}
    if register.is_file():
        try:
            entries = json.loads(register.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"{register}: cannot be read as JSON: {error}") from None
    entry = entries.get(name)
    if not isinstance(entry, dict):
        result.left_out.append(
            f"where the data set {name} is: it is not in {register}. Set data.train, data.eval"
        )
        return f"{folder / name}.json", {}
    for key in ("subset", "folder", "script_url"):
        if entry.get(key):
            result.left_out.append(f"{name}: {key}: {entry[key]} of {register}")
    if file := entry.get("file_name"):
        path = str(folder / file)
    else:
        hub, modelscope = entry.get("hf_hub_url"), entry.get("ms_hub_url")
        path = hub or (f"modelscope://{modelscope}" if modelscope else f"{folder / name}.json")
    return path, dict(_layout(result, entry))


def _layout(result: Converted, entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give format, columns and roles of a data set as our recipe has them."""
    theirs = entry.get("columns") or {}
    if entry.get("formatting", "alpaca") == "alpaca":
        form, names = "alpaca", {"prompt": "instruction", "query": "input", "response": "output"}
    else:
        tags = {"role_tag": "from", "content_tag": "value"} | (entry.get("tags") or {})
        by_role = (tags["role_tag"], tags["content_tag"]) == ("role", "content")
        form = "openai" if by_role else "sharegpt"
        names = {"messages": "messages" if by_role else "conversations"}
        if not by_role and (tags["role_tag"], tags["content_tag"]) != ("from", "value"):
            result.left_out.append(
                f"tags: {entry['tags']}. Turns are named from/value, role/content"
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
    """Take keys over under their names here, where they are given."""
    for theirs, ours in names.items():
        if given.get(theirs) is not None:
            values[ours] = _number(given.pop(theirs))


def _names(value: Any) -> list[str]:
    """Read `a,b` or a list."""
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts if str(part).strip()]
