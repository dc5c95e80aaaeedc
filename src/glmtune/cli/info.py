"""`glmtune info`."""

from typing import Annotated

import typer


def info(
    model: Annotated[
        str, typer.Argument(help="Model folder, hub id, or adapter folder.", show_default=False)
    ],
    lora_r: Annotated[int, typer.Option(min=1, help="Rank of the LoRA to reckon with.")] = 8,
    target_modules: Annotated[
        str | None, typer.Option(help="Comma-separated layers; default: peft's choice.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what a model or an adapter is made of; no weights are loaded.

    Example: glmtune info ./chatglm3-6b --lora-r 8 --target-modules query_key_value
    """
    raise NotImplementedError
