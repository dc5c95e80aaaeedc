"""Ask transformers and peft, in a fresh process without glmtune, to read a written folder."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from glmtune.conversation import Message
from glmtune.errors import OutputError

READER = Path(__file__).with_name("stock_reader.py")
TOKENIZER = "tokenizer.json"  # without it transformers cannot read ChatGLM's tokenizer


@dataclass(frozen=True, slots=True)
class StockAnswer:
    """What transformers and peft read from a folder.

    Attributes:
        prompts: ids of the chats by the tokenizer; None if it was not asked.
        logits: of each sequence of ids, (seq, vocab); empty if no model was asked.
        version: of transformers.
    """

    prompts: list[list[int]] | None
    logits: list[Tensor]
    version: str


class StockError(OutputError):
    """transformers or peft cannot read what was written."""


def ask_stock(
    *,
    tokenizer: Path,
    chats: Sequence[Sequence[Message]] = (),
    model: Path | None = None,
    adapter: Path | None = None,
    dtype: str = "float32",
    ids: Sequence[Sequence[int]] = (),
) -> StockAnswer:
    """Read a tokenizer, and a model, in a process that never imports glmtune.

    Args:
        tokenizer: the folder with the tokenizer.
        chats: encoded with the chat template; none if the folder has no tokenizer.json.
        model: the folder of a model to score `ids` with; None for none.
        adapter: over that model, read by peft.
        dtype: of the model, by torch's name.
        ids: sequences.

    Raises:
        StockError: the process failed; with its last line.
    """
    from safetensors.torch import load_file

    reads_chats = bool(chats) and (tokenizer / TOKENIZER).is_file()
    if not reads_chats and model is None:
        return StockAnswer(None, [], "")
    request: dict[str, Any] = {
        "tokenizer": str(tokenizer),
        "chats": [[as_dict(each) for each in chat] for chat in chats] if reads_chats else None,
        "model": None if model is None else str(model),
        "adapter": None if adapter is None else str(adapter),
        "dtype": dtype,
        "ids": [list(each) for each in ids],
    }
    with TemporaryDirectory(prefix="glmtune-") as name:
        place = Path(name)
        file = place / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-P", str(READER), str(file)],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
            raise StockError(f"transformers cannot read {model or tokenizer}: {last}")
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
        found = load_file(place / "logits.safetensors") if model is not None else {}
        logits = [found[str(index)].clone() for index in range(len(found))]
    assert not result["imports_glmtune"]
    return StockAnswer(result["prompts"], logits, result["version"])


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as ChatGLM's chat template takes it."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.metadata:
        fields["metadata"] = message.metadata
    if message.tools:
        fields["tools"] = list(message.tools)
    return fields
