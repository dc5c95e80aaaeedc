"""The complete model in the layout of its base: ChatGLM's original one, for ChatGLM.

config.json                      the base's, with its own key names and its auto_map
model*.safetensors               the base's tensor names
tokenizer files, glmtune.json    how prompts are built
"""

import json
import shlex
from pathlib import Path

from glmtune.use.export.job import Job, copy_code, written_config
from glmtune.use.export.update import Survival


def write_chatglm(job: Job, folder: Path) -> Survival:
    """Write the model, with the adapter in its weights, in the layout of the base.

    Raises:
        CheckpointError: the adapter cannot be merged, or the base is damaged or quantized.
        OutputError: the disk has too little space.
    """
    survival = job.write_weights(folder)
    job.write_prompt_files(folder)
    copy_code(job, folder)
    config = json.dumps(written_config(job), ensure_ascii=False, indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    return survival


def start_chatglm(job: Job, target: Path) -> str:
    """Return the command that answers with the result."""
    return f"glmtune chat {shlex.quote(str(target))}"
