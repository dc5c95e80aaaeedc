"""A LoRA of ChatGLM as a LoRA of the same model in transformers' `glm` layout.

    query_key_value   B (q + k + v, r) A (r, in)   ->   q_proj   rows of queries of B, and A
                                                        k_proj   rows of keys of B, and A
                                                        v_proj   rows of values of B, and A

Rank and alpha stay, so the update is the same, number by number. DoRA's magnitudes, biases, and
modules that were trained in full are split by the same rows.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.errors import CheckpointError
from glmtune.methods.adapter_folder import CONFIG, by_peft_names, read_config, read_tensors
from glmtune.use.export.glm import NAMES, check_relayable, glm_names, python_line, split_rows
from glmtune.use.export.job import Job
from glmtune.use.export.update import mergeable_config

_PREFIX = "base_model.model."
_SUFFIXES = (  # what peft saves for a module, after its name
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector.weight",
    "lora_magnitude_vector",
    "token_adapter.trainable_tokens_delta",
    "base_layer.bias",
    "weight",
    "bias",
)
_SHARED = ("lora_A.weight",)  # the same for queries, keys and values; the rest has their rows
_NOT_OURS = ("layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters")


def write_lora_glm(job: Job, folder: Path) -> None:
    """Write an adapter for the model that `--to glm` writes.

    Raises:
        CheckpointError: it is no LoRA, or changes something that glm does not have.
    """
    from safetensors.torch import save_file

    check_relayable(job)
    adapter = required_lora(job, "lora-glm")
    job.merged()  # refuses an adapter of another shape
    tensors = by_peft_names(read_tensors(adapter)[1])
    save_file(
        dict(_relay(job.config, tensors)),
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    job.write_prompt_files(folder)
    config = _glm_adapter_config(job, read_config(adapter), tensors)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def required_lora(job: Job, to: str) -> Path:
    """Return the folder of the adapter, which must be a LoRA.

    Raises:
        CheckpointError: a model was given, or an adapter of another method.
    """
    if job.adapter is None:
        raise CheckpointError(
            f"{job.base_name} is a complete model, and --to {to} takes an adapter. Use --to "
            f"{to.removeprefix('lora-')}, or give the folder of the adapter."
        )
    config = mergeable_config(job.adapter)
    init = getattr(config, "init_lora_weights", True)
    if config.peft_type.value != "LORA" or init in ("pissa", "olora"):
        what = config.peft_type.value if config.peft_type.value != "LORA" else f"raw {init}"
        raise CheckpointError(
            f"{job.adapter}: it is an adapter by {what}, and --to {to} takes a plain LoRA. "
            "Export the merged model: --to glm or --to chatglm."
        )
    return job.adapter


def base_folder_name(job: Job) -> str:
    """Return the name for the base in glm's layout that the printed lines and the config use."""
    return f"{Path(job.base_name).name}-glm"


def start_lora_glm(job: Job, target: Path) -> str:
    """Return the commands that make the base and answer with the adapter over it."""
    base = base_folder_name(job)
    code = (
        "from peft import PeftModel; "
        "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline; "
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), "
        f"{str(target)!r}); "
        f"tokenizer = AutoTokenizer.from_pretrained({str(target)!r}); "
        "print(pipeline('text-generation', model, tokenizer=tokenizer)"
        "([{'role': 'user', 'content': '你好'}])[0]['generated_text'][-1]['content'])"
    )
    export = f"glmtune export {shlex.quote(job.base_name)} --to glm -o {shlex.quote(base)}"
    return f"{export} && {python_line(code)}"


def _split_key(key: str) -> tuple[str, str]:
    """Split a tensor's name into that of its module in ChatGLM, and what it is there."""
    inner = key.removeprefix(_PREFIX)
    for suffix in _SUFFIXES:
        if inner.endswith(f".{suffix}"):
            return inner.removesuffix(f".{suffix}"), suffix
    raise CheckpointError(
        f"{key}: expected what peft saves for a LoRA ({', '.join(_SUFFIXES[:3])}, ...). Export the "
        "merged model instead: --to glm."
    )


def _relay(config: Any, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        path, suffix = _split_key(key)
        names = glm_names(path)
        if len(names) == 1:
            parts: tuple[Tensor, ...] = (tensor,)
        elif suffix in _SHARED:
            parts = (tensor, tensor.clone(), tensor.clone())
        else:
            parts = split_rows(config, tensor)
        for name, part in zip(names, parts, strict=True):
            yield f"{_PREFIX}{name}.{suffix}", part.contiguous()


def _glm_adapter_config(
    job: Job, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return adapter_config.json with the names of glm.

    Layers, ranks and scales that differ are named one by one, since peft's patterns are regular
    expressions on the old names.
    """
    from peft.utils.other import get_pattern_key

    ranks = {
        path: tensor.size(0 if suffix == "lora_A.weight" else -1)
        for key, tensor in tensors.items()
        for path, suffix in [_split_key(key)]
        if suffix in ("lora_A.weight", "lora_embedding_B")
    }
    alphas = stored.get("alpha_pattern") or {}
    config = {key: value for key, value in stored.items() if key not in _NOT_OURS}
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    for path, rank in ranks.items():
        for name in glm_names(path):
            if rank != stored["r"]:
                rank_pattern[name] = rank
            if (pattern := get_pattern_key(list(alphas), path)) in alphas:
                alpha_pattern[name] = alphas[pattern]
    config |= {
        "target_modules": _targets(job, list(ranks)),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "modules_to_save": _renamed(stored.get("modules_to_save")),
        "base_model_name_or_path": base_folder_name(job),
        "auto_mapping": None,
    }
    tokens = stored.get("trainable_token_indices")
    if isinstance(tokens, dict):
        config["trainable_token_indices"] = {_renamed([key])[0]: ids for key, ids in tokens.items()}  # type: ignore[index]
    return config


def _renamed(names: Any) -> list[str] | None:
    """Rename modules that are named by the ends of their names."""
    if not names:
        return None
    return [new for name in names for new in NAMES.get(str(name).rpartition(".")[2], (str(name),))]


def _targets(job: Job, paths: list[str]) -> list[str]:
    """Return the last names of the adapted modules if every layer has them, else the full names."""
    last_names = {path.rpartition(".")[2] for path in paths}
    num_layers = job.config.num_layers
    expected = sum(
        1 if last in ("word_embeddings", "output_layer") else num_layers for last in last_names
    )
    if len(paths) == expected:
        return [name for last in sorted(last_names) for name in NAMES[last]]
    return [name for path in paths for name in glm_names(path)]
