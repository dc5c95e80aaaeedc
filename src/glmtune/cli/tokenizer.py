"""`glmtune tokenizer`."""

from pathlib import Path
from typing import Annotated

import typer

tokenizer = typer.Typer(name="tokenizer", help="Make a tokenizer of ChatGLM's kind.")


@tokenizer.callback()
def _group() -> None:
    """Make a tokenizer of ChatGLM's kind."""


@tokenizer.command()
def train(
    texts: Annotated[
        list[str],
        typer.Argument(help="Files, folders or hub ids, as for data.train.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tokenizer.")],
    vocab_size: Annotated[
        int, typer.Option(help="Pieces; the nine special tokens come on top.")
    ] = 6000,
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
) -> None:
    """Learn the pieces of a tokenizer from texts (SentencePiece BPE, ChatGLM's settings).

    Example: glmtune tokenizer train corpus.jsonl --output tokenizer --vocab-size 6000
    """
    from glmtune.data.texts import read_texts
    from glmtune.errors import DataError, OutputError
    from glmtune.model.chatglm.train_tokenizer import train_tokenizer

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(
            f"{output}: already holds something. Choose another folder for --output, or empty it."
        )
    try:
        made = train_tokenizer(read_texts(texts, column), vocab_size, output)
    except ValueError as error:
        raise DataError(f"{', '.join(texts)}: {error}") from error
    typer.echo(f"{output}: {len(made):,} ids")
