"""The formats that an export writes: one table.

chatglm    the complete model in its own layout          glmtune, older tools, chatglm.cpp
glm        the complete model as transformers' glm       anything that reads transformers' models
lora-glm   the adapter for that                          peft
vllm       a model or an adapter as vLLM reads it        vLLM
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """

    write: Callable[[Job, Path], Survival | None]
    check: Callable[[Job, Path, Reference], list[Check]]
    start: Callable[[Job, Path], str]
    keeps_adapter: bool = False


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
}
