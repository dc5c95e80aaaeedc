"""Recipes of ChatGLM3's finetune_demo: lora.yaml, sft.yaml, ptuning_v2.yaml.

Source: THUDM/ChatGLM3, finetune_demo/configs and finetune_hf.py.
"""

from pathlib import Path

from glmtune.errors import RecipeError
from glmtune.recipe.explain import keys_of, shown
from glmtune.recipe.origin import DEFAULT_MODEL
from glmtune.recipe.other_tools.converted import (
    Converted,
    convert_answers,
    convert_training,
)
from glmtune.recipe.other_tools.given import Given

SCORED_ROWS = 50  # of the held-out ones: its command answers the first 50


def convert(result: Converted, given: Given, model: str | None, data_dir: Path | None) -> None:
    """Convert a recipe of the official demo.

    Args:
        result: gets our sections.
        given: the keys of the file.
        model: the base model; None for the one of the demo.
        data_dir: the folder of the data; None for the working directory.

    Raises:
        RecipeError: its peft_type is not supported.
    """
    folder = data_dir or Path()
    sections = result.sections
    sections["model"]["name_or_path"] = model or DEFAULT_MODEL
    if model is None:
        result.not_converted.append(
            f"the model, an argument of its command: {DEFAULT_MODEL} is used"
        )
    files = given.section("data_config") or Given({}, result.not_converted)
    for theirs, ours in (("train_file", "train"), ("val_file", "eval")):
        if name := files.text(theirs):
            sections["data"][ours] = str(folder / name)
    sections["data"].setdefault("train", str(folder / "train.json"))
    if name := files.text("test_file"):
        result.not_converted.append(f"test_file: {name}. Answer it by `glmtune predict {name}`")
    longest = [given.number(f"max_{side}_length", 512) for side in ("input", "output")]
    sections["data"]["max_length"] = sum(longest) + 1
    sections["training"] |= {"average": "micro_batches", "gradient_checkpointing": True}
    arguments = given.section("training_args", "") or Given({}, result.not_converted)
    convert_answers(result, arguments, SCORED_ROWS)
    convert_training(result, arguments)
    _convert_half(result, arguments)
    _convert_peft(result, given)
    for left in (arguments, files, given):
        result.list_remaining(left)


def _convert_half(result: Converted, arguments: Given) -> None:
    for key in ("bf16", "fp16"):
        if arguments.flag(key):
            result.sections["training"][key] = True


def _convert_peft(result: Converted, given: Given) -> None:
    """Convert the section of peft's configuration; without one all weights are trained."""
    adapter = result.sections["adapter"]
    keys = given.take("peft_config")
    if keys is None:
        adapter["method"] = "full"
        return
    if not isinstance(keys, dict) or not keys:
        raise RecipeError(
            f"peft_config is {shown(keys)}, expected its keys, such as peft_type: LORA. To train "
            "all weights, leave peft_config out."
        )
    config = Given(keys, result.not_converted, "peft_config.")
    peft_type = config.text("peft_type", "LORA")
    if peft_type == "LORA":
        adapter |= {"method": "lora", "lora_alpha": 8}
    elif peft_type == "PREFIX_TUNING":
        # The demo's loader builds ChatGLM's own prefix encoder from this, not peft's.
        adapter["method"] = "ptuning_v2"
        config.rename("num_virtual_tokens", "pre_seq_len")
    else:
        raise RecipeError(
            f"peft_config.peft_type is {shown(peft_type)}; LORA and PREFIX_TUNING can be converted."
        )
    names = [key for key in config.names_left() if key in keys_of("adapter", adapter["method"])]
    config.move(adapter, **{key: key for key in names if key != "method"})
    result.list_remaining(config)
