"""`glmtune export`."""

from typing import Annotated

import typer

from glmtune.cli.options import (
    BaseOption,
    DtypeOption,
    ExportOutput,
    MaxShardSize,
    ModelArgument,
    PromptLayout,
    Proof,
)
from glmtune.cli.printing import print_exported

FORMATS_HELP = "chatglm, glm, lora-glm, vllm, gguf, lora-gguf or ollama."

QUANTIZE_HELP = (
    "Of gguf and ollama, the type of matrices: f32, f16, bf16, q8_0; with llama-cpp-python also "
    "q4_k_m and others."
)


def export(
    source: ModelArgument,
    to: Annotated[str, typer.Option("--to", help=FORMATS_HELP, show_default=False)],
    output: ExportOutput,
    base: BaseOption = None,
    layout: PromptLayout = None,
    dtype: DtypeOption = "auto",
    max_shard_size: MaxShardSize = "2GB",
    quantize: Annotated[str, typer.Option(help=QUANTIZE_HELP)] = "",
    proof: Proof = True,
) -> None:
    """Write a model or an adapter for another tool, and check that it answers the same.

    Example: glmtune export out/chatglm3-lora --to glm -o chatglm3-6b-glm
    """
    from glmtune.use.export.run import export as write

    print_exported(
        write(
            source,
            output,
            to,
            base=base,
            layout=layout,
            dtype=dtype,
            max_shard_size=max_shard_size,
            quantize=quantize,
            prove=proof,
        )
    )
