"""A model or an adapter as vLLM reads it: ChatGLM's own layout, with a stock tokenizer beside it.

vLLM has its own ChatGLM and reads the original names, of a model and of a LoRA, without remote
code. What it lacks is a tokenizer: it takes that of the written folder.

Source: vLLM 0.32, model_executor/models/chatglm.py and lora/peft_helper.py.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from glmtune.errors import CheckpointError, some
from glmtune.methods.adapter_folder import CONFIG, by_peft_names, read_config, read_tensors
from glmtune.use.export.chatglm import write_chatglm
from glmtune.use.export.glm import check_chatglm
from glmtune.use.export.job import Job
from glmtune.use.export.lora_glm import required_lora
from glmtune.use.export.update import Survival

ADAPTED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank accepts
_SERVER = "python -m vllm.entrypoints.openai.api_server"


def write_vllm(job: Job, folder: Path) -> Survival | None:
    """Write a complete model, or an adapter, as vLLM reads it.

    Returns:
        What of the update survives in the dtype; None for an adapter, which stays as it is.

    Raises:
        CheckpointError: vLLM does not support what the adapter changes.
        OutputError: the disk has too little space.
    """
    check_chatglm(job, "vLLM")
    if job.adapter is None:
        return write_chatglm(job, folder)
    from safetensors.torch import save_file

    adapter = required_lora(job, "vllm")
    config = read_config(adapter)
    job.merged()  # refuses an adapter of another shape
    tensors = by_peft_names(read_tensors(adapter)[1])
    _refuse_unsupported(adapter, config, list(tensors))
    written = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(written, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    job.write_prompt_files(folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return None


def _refuse_unsupported(adapter: Path, config: dict[str, Any], names: list[str]) -> None:
    wanted = {
        "use_dora": "DoRA",
        "modules_to_save": "modules that were trained in full",
        "rank_pattern": "ranks that differ",
        "alpha_pattern": "scales that differ",
        "lora_bias": "biases of B",
        "trainable_token_indices": "single trained embeddings",
    }
    found = [what for key, what in wanted.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        found.append("trained biases")
    others = {
        name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name
    } - set(ADAPTED)
    if others:
        found.append(f"a LoRA of {some(sorted(others))}")
    if config["r"] > MAX_RANKS[-1]:
        found.append(f"rank {config['r']} (at most {MAX_RANKS[-1]})")
    if found:
        raise CheckpointError(
            f"{adapter}: vLLM has no place for {', '.join(found)} of an adapter. Merge it first: "
            f"glmtune merge {shlex.quote(str(adapter))} -o MERGED, then "
            "glmtune export MERGED --to vllm."
        )


def start_vllm(job: Job, target: Path) -> str:
    """Return the command that serves the result with OpenAI's API."""
    folder = shlex.quote(str(target))
    if job.adapter is None:
        return f"{_SERVER} --model {folder} --served-model-name {shlex.quote(target.name)}"
    rank = int(read_config(job.adapter)["r"])
    max_rank = next(each for each in MAX_RANKS if each >= rank)
    return (
        f"{_SERVER} --model {shlex.quote(job.base_name)} --tokenizer {folder} --enable-lora "
        f"--max-lora-rank {max_rank} --lora-modules {shlex.quote(target.name)}={folder}"
    )
