"""`glmtune merge`."""

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import (
    BaseOption,
    DtypeOption,
    ExportOutput,
    MaxShardSize,
    PromptLayout,
    Proof,
)
from glmtune.cli.printing import print_exported


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter.", show_default=False)],
    output: ExportOutput,
    base: BaseOption = None,
    layout: PromptLayout = None,
    dtype: DtypeOption = "auto",
    max_shard_size: MaxShardSize = "2GB",
    proof: Proof = True,
) -> None:
    """Merge an adapter into its base: a complete model in the base's layout.

    Example: glmtune merge out/chatglm3-lora -o chatglm3-6b-tuned
    """
    from glmtune.library import merge as write

    print_exported(
        write(
            adapter,
            output,
            base=base,
            layout=layout,
            dtype=dtype,
            max_shard_size=max_shard_size,
            prove=proof,
        )
    )
