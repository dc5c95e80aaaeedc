"""`glmtune download`: fetch a model from a hub."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.printing import echo
from glmtune.errors import CheckpointError, OutputError
from glmtune.gc_pause import loading


def download(
    name: Annotated[
        str,
        typer.Argument(
            help="Hub id, such as zai-org/chatglm3-6b or modelscope://ZhipuAI/chatglm3-6b.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write; default: the cache of the hub."),
    ] = None,
) -> None:
    """Download the files of a model, without its code. What is there already stays.

    Example: glmtune download modelscope://ZhipuAI/chatglm3-6b -o chatglm3-6b
    """
    with loading():
        from glmtune.model import hubs

    if not hubs.is_hub_id(name):
        raise CheckpointError(
            f"{name!r} is no hub id: expected owner/name, such as zai-org/chatglm3-6b, or "
            "modelscope://ZhipuAI/chatglm3-6b."
        )
    if output is not None and os.path.exists(output) and not os.path.isdir(output):
        raise OutputError(f"{output}: is a file, expected a folder to write into.")
    folder = hubs.download(name, output)
    echo(f"Downloaded: {folder}")
    echo(f"Look at it: {shlex.join(['glmtune', 'info', str(folder)])}")
