"""`glmtune predict`."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from glmtune.cli.lint import recipe_for
from glmtune.errors import RecipeError
from glmtune.gc_pause import loading

if TYPE_CHECKING:
    from collections.abc import Iterable


def predict(
    data: Annotated[
        str,
        typer.Argument(
            help="Rows as in data.train, with answers or without; a .txt of prompts; or a recipe.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="How rows are read: data.columns and others."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model folder, hub id, nano, or adapter folder.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Folder that `glmtune train` wrote.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write, as JSONL.")
    ] = Path("answers.jsonl"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what an interrupted run answered.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace answers that are there.")
    ] = False,
    layout: Annotated[
        Literal["official", "tutorial", "chatglm2", "plain"] | None,
        typer.Option(help="How prompts are built; by default as the adapter's were."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="Of the weights.")
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="0 is all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01)] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes answers repeatable.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows written at once; fewer take less memory.")
    ] = 32,
    any_template: Annotated[
        bool, typer.Option("--any-template", help="Use an adapter trained on other prompts.")
    ] = False,
) -> None:
    """Answer every row of a file.

    A line of the output has the row's number, file and line, its last turn as "prompt", the
    "answer", whether it "ended" by itself, its "tokens", and as "reference" the answer that the
    row itself has. Several turns of a row stand before the answer as they are.

    Example: glmtune predict rows.json --model ./chatglm3-6b --adapter out/chatglm3-lora
    -o answers.jsonl
    """
    if model is None and not data.endswith((".yaml", ".yml")):
        raise RecipeError(
            f"--model is missing. Try: glmtune predict {data} --model ./chatglm3-6b -o {output}"
        )
    values: dict[str, str | int | None] = {"model.name_or_path": model, "data.bad_rows": "fail"}
    recipe = recipe_for(data, values, overrides or [])

    from glmtune.use import predict as predicting

    predicting.check_output(output, resume=resume, overwrite=overwrite)

    with loading():
        from glmtune.model.load import load_config
        from glmtune.use.generate import Sampling
        from glmtune.use.open import load_tuned, open_template

    base, folder, template = open_template(
        recipe.model.name_or_path, adapter, layout=layout, any_template=any_template
    )
    context_length: int | None = getattr(load_config(base), "max_position_embeddings", None)
    questions = predicting.read_questions(recipe.data, template, context_length=context_length)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    identity = predicting.identify(base, folder, template, questions, sampling, dtype)
    answers = predicting.AnswerFile(output, identity)
    if resume:
        answers.resume()
    waiting = [question for question in questions if question.row not in answers.lines]
    new: Iterator[dict[str, Any]] = iter(())
    if waiting:
        new = predicting.predict(
            load_tuned(base, folder, dtype=dtype),
            template,
            waiting,
            sampling=sampling,
            context_length=context_length,
            batch_size=batch_size,
        )
    try:
        answers.write(show(new, len(questions), done=len(answers.lines)))
    except KeyboardInterrupt:
        typer.echo(
            f"Stopped: {len(answers.lines):,} of {len(questions):,} rows are answered, in "
            f"{answers.partial}. Go on with the same command and --resume.",
            err=True,
        )
        raise typer.Exit(130) from None
    num_ended = sum(line["ended"] for line in answers.lines.values())
    typer.echo(f"{output}: {len(questions):,} answers, {num_ended:,} of them ended by themselves")


def show(answers: "Iterable[dict[str, Any]]", total: int, *, done: int) -> Iterator[dict[str, Any]]:
    """Pass answers on, and show on a terminal how many there are, the rate and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    began, num_tokens = time.perf_counter(), 0
    with Progress(
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(),
        console=(console := Console(stderr=True)),
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=total, completed=done, rate=0.0)
        for answer in answers:
            num_tokens += answer["tokens"] + answer["ended"]
            rate = num_tokens / (time.perf_counter() - began)
            bar.update(task, advance=1, rate=rate)
            yield answer
