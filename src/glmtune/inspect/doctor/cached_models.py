"""Find the ChatGLM checkpoints in the hub cache, and whether their downloads are complete."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glmtune.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A ChatGLM checkpoint in the hub cache.

    Attributes:
        name: the hub id.
        size_bytes: of all its files.
        problem: why it cannot be loaded, "" if it can.
    """

    name: str
    size_bytes: int
    problem: str


def hub_cache() -> Path:
    """Return the folder that huggingface_hub downloads into; it may not exist yet."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def cached_models(cache: Path) -> Iterator[CachedModel]:
    """Find the ChatGLM checkpoints in a hub cache; of each, the newest snapshot counts."""
    for repository in sorted(cache.glob("models--*")):
        snapshots = sorted(repository.glob("snapshots/*/config.json"), key=os.path.getmtime)
        if not snapshots:
            continue
        config = snapshots[-1].read_text(encoding="utf-8", errors="replace")
        if not re.search(r'"model_type":\s*"chatglm"', config):
            continue
        folder = snapshots[-1].parent
        yield CachedModel(
            name=repository.name.removeprefix("models--").replace("--", "/"),
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            problem=_what_is_missing(folder),
        )


def _what_is_missing(folder: Path) -> str:
    """Return what a download lacks, "" if it is complete."""
    from glmtune.model.files import weight_files

    try:
        files = weight_files(folder)
    except CheckpointError as error:
        return str(error)
    if not files:
        return "it has no weights"
    missing = [file.name for file in files if not file.is_file()]
    if not (folder / "tokenizer.model").is_file():
        missing.append("tokenizer.model")
    return f"{', '.join(missing)} missing" if missing else ""
