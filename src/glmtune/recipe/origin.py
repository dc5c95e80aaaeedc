"""Tell the recipes of other tools apart, by the keys that only one of them has.

official        lora.yaml, sft.yaml, ptuning_v2.yaml of ChatGLM3's finetune_demo
LLaMA-Factory   its YAML for `llamafactory-cli train`
ms-swift        its YAML for `swift sft --config`, and the args.json that it writes
Axolotl         its YAML for `axolotl train`
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OFFICIAL, LLAMA_FACTORY = "ChatGLM3's finetune_demo", "LLaMA-Factory"
SWIFT, AXOLOTL = "ms-swift", "Axolotl"
TOOLS = (OFFICIAL, LLAMA_FACTORY, SWIFT, AXOLOTL)

DEFAULT_MODEL = "zai-org/chatglm3-6b"

_SWIFT_ONLY = {
    "tuner_type", "train_type", "sft_type", "swift_version", "tuner_backend", "model_id_or_path",
    "split_dataset_ratio", "rlhf_type", "val_dataset",
}  # fmt: skip
_AXOLOTL_ONLY = {
    "datasets", "sequence_len", "micro_batch_size", "val_set_size", "lora_r", "num_epochs",
    "sample_packing",
}  # fmt: skip
_LLAMA_FACTORY_ONLY = {
    "finetuning_type", "stage", "dataset_dir", "cutoff_len", "lora_target", "pref_loss",
}  # fmt: skip


def tool_of(tree: Mapping[str, Any]) -> str | None:
    """Return the tool whose recipe this is; None for ours, and for what is none."""
    ours = [tree.get(name) for name in ("model", "data", "adapter", "training", "output")]
    if any(isinstance(section, Mapping) for section in ours):
        return None
    if {"training_args", "data_config", "peft_config"} & tree.keys():
        return OFFICIAL
    if "base_model" in tree and _AXOLOTL_ONLY & tree.keys():
        return AXOLOTL
    names_model = isinstance(tree.get("model"), str) and "dataset" in tree
    if names_model or (_SWIFT_ONLY & tree.keys() and not _LLAMA_FACTORY_ONLY & tree.keys()):
        return SWIFT
    if _LLAMA_FACTORY_ONLY & tree.keys() or {"dataset", "template"} <= tree.keys():
        return LLAMA_FACTORY
    return None


def other_command(tree: Mapping[str, Any]) -> str | None:
    """Return our command for a file of LLaMA-Factory that merges or chats; None for any other."""
    model, adapter = (tree.get(f"{name}_name_or_path") for name in ("model", "adapter"))
    if not isinstance(model, str):
        return None
    has_adapter = isinstance(adapter, str)
    if "export_dir" in tree and has_adapter:
        return shlex.join(["glmtune", "merge", str(adapter), "--output", str(tree["export_dir"])])
    if {"infer_backend", "template"} & tree.keys():
        more = ["--adapter", str(adapter)] if has_adapter else []
        return shlex.join(["glmtune", "chat", model, *more])
    return None


def conversion_command(path: Path, tree: Mapping[str, Any], tool: str) -> str:
    """Return the command that converts a recipe."""
    command = ["glmtune", "convert-recipe", str(path)]
    names = {
        LLAMA_FACTORY: ("model_name_or_path",),
        SWIFT: ("model", "model_id_or_path"),
        AXOLOTL: ("base_model",),
    }.get(tool, ())
    if tool != OFFICIAL and not any(isinstance(tree.get(name), str) for name in names):
        command += ["--model", DEFAULT_MODEL]
    return shlex.join(command)
