"""Write the tokenizer's files beside a model or an adapter."""

from pathlib import Path
from typing import Any


def write_stock_files(
    folder: Path, tokenizer: Any, config: Any = None, *, layout: str = "official"
) -> None:
    """Write what reads the prompts of a folder.

    Args:
        folder: of the model or the adapter.
        tokenizer: of the model.
        config: of the model.
        layout: of the prompts.
    """
    tokenizer.save_pretrained(str(folder))
