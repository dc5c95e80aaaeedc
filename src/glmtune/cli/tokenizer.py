"""`glmtune tokenizer`: train a tokenizer."""

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.localized import LocalCommand, LocalGroup
from glmtune.cli.printing import echo

tokenizer = typer.Typer(
    name="tokenizer", cls=LocalGroup, help="Train a tokenizer with ChatGLM's settings."
)


@tokenizer.callback()
def _group() -> None:
    """Train a tokenizer with ChatGLM's settings."""


@tokenizer.command(cls=LocalCommand)
def train(
    texts: Annotated[
        list[str],
        typer.Argument(help="Files, folders or hub ids, as for data.train.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tokenizer.")],
    vocab_size: Annotated[
        int, typer.Option(help="Number of pieces, without the nine special tokens.")
    ] = 6000,
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
) -> None:
    """Train a tokenizer on texts (SentencePiece BPE, ChatGLM's settings).

    Example: glmtune tokenizer train corpus.jsonl --output tokenizer --vocab-size 6000
    """
    from glmtune.data.texts import read_texts
    from glmtune.errors import DataError, OutputError
    from glmtune.model.chatglm.train_tokenizer import train_tokenizer

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(
            f"{output}: is not empty. Choose another folder for --output, or empty it."
        )
    try:
        made = train_tokenizer(read_texts(texts, column), vocab_size, output)
    except ValueError as error:
        raise DataError(f"{', '.join(texts)}: {error}") from error
    echo(f"{output}: {len(made):,} ids")
