"""The formats that an export writes: one table.

chatglm    the complete model in its own layout          glmtune, older tools, chatglm.cpp
glm        the complete model as transformers' glm       anything that reads transformers' models
lora-glm   the adapter for that                          peft
vllm       a model or an adapter as vLLM reads it        vLLM
gguf       the complete model as one file                llama.cpp, LM Studio and others
lora-gguf  the adapter for that                          the same
ollama     the complete model and a Modelfile            Ollama
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from glmtune.use.export import llama_cpp
from glmtune.use.export.chatglm import start_chatglm, write_chatglm
from glmtune.use.export.folder import check_space
from glmtune.use.export.glm import start_glm, write_glm
from glmtune.use.export.job import Job, temporary_folder
from glmtune.use.export.lora_glm import start_lora_glm, write_lora_glm
from glmtune.use.export.probes import Reference
from glmtune.use.export.proofs import Check, check_ours, check_stock
from glmtune.use.export.update import Survival
from glmtune.use.export.vllm import start_vllm, write_vllm


@dataclass(frozen=True, slots=True)
class Format:
    """A format of an export.

    Attributes:
        write: writes the result to an existing folder, and returns what of the update survives,
            None if nothing was rounded. It refuses what the format cannot hold first.
        check: opens the folder again and compares it with the source.
        start: returns the command line that uses the result in its tool.
        keeps_adapter: whether an adapter stays one, so that there is no dtype to choose.
        is_gguf: whether a GGUF type can be chosen for the matrices.
    """

    write: Callable[[Job, Path], Survival | None]
    check: Callable[[Job, Path, Reference], list[Check]]
    start: Callable[[Job, Path], str]
    keeps_adapter: bool = False
    is_gguf: bool = False


def _check_lora_glm(job: Job, folder: Path, reference: Reference) -> list[Check]:
    """Compare over the base in glm's layout, which is written for this and removed."""
    base = Job(job.base, job.base_name, None, job.template)
    with temporary_folder(folder) as model:
        check_space(model, base.merged().num_bytes())
        write_glm(base, model)
        return check_stock(job, model, reference, folder)


FORMATS = {
    "chatglm": Format(write_chatglm, check_ours, start_chatglm),
    "glm": Format(write_glm, check_stock, start_glm),
    "lora-glm": Format(write_lora_glm, _check_lora_glm, start_lora_glm, keeps_adapter=True),
    "vllm": Format(write_vllm, check_ours, start_vllm, keeps_adapter=True),
    "gguf": Format(
        llama_cpp.write_model, llama_cpp.check_model, llama_cpp.start_model, is_gguf=True
    ),
    "lora-gguf": Format(
        llama_cpp.write_lora, llama_cpp.check_lora, llama_cpp.start_lora, keeps_adapter=True
    ),
    "ollama": Format(
        llama_cpp.write_for_ollama, llama_cpp.check_model, llama_cpp.start_in_ollama, is_gguf=True
    ),
}
