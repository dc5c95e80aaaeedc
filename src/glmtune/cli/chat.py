"""`glmtune chat`."""

from typing import Annotated, Literal

import typer


def chat(
    model: Annotated[
        str, typer.Argument(help="Model folder, hub id, or adapter folder.", show_default=False)
    ],
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Folder that `glmtune train` wrote.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Answer this alone, and leave; - reads stdin."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the system message says.")] = None,
    layout: Annotated[
        Literal["official", "tutorial", "plain"] | None,
        typer.Option(help="How prompts are built. Default: as the adapter's were."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="Of the weights.")
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="0 is all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01)] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    any_template: Annotated[
        bool, typer.Option("--any-template", help="Use an adapter trained on other prompts.")
    ] = False,
) -> None:
    """Talk to a model.

    Example: glmtune chat ./chatglm3-6b --adapter out -p 你好
    """
    raise NotImplementedError
