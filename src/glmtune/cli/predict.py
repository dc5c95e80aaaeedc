"""`glmtune predict`: answer every row of a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune.cli.options import (
    MODEL_HELP,
    AdapterOption,
    AnyTemplate,
    DtypeOption,
    MaxNewTokens,
    PromptLayout,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    recipe_for_rows,
)
from glmtune.cli.printing import echo, show_progress
from glmtune.errors import RecipeError
from glmtune.gc_pause import loading
from glmtune.recipe.choices import Dtype, Layout
from glmtune.recipe.shipped import is_recipe

if TYPE_CHECKING:
    from glmtune.recipe.recipe import Recipe
    from glmtune.use.generate import Sampling
    from glmtune.use.predict import AnswerFile


def predict(
    data: Annotated[
        str,
        typer.Argument(
            help="Rows as in data.train, with or without answers; a .txt of prompts; or a recipe.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Change values of the recipe, such as data.columns."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help=MODEL_HELP)] = None,
    adapter: AdapterOption = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="JSON Lines file to write.")
    ] = Path("answers.jsonl"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run, and keep its answers.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    layout: PromptLayout = None,
    dtype: DtypeOption = "auto",
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 0.8,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows decoded together; fewer need less memory.")
    ] = 32,
    any_template: AnyTemplate = False,
) -> None:
    """Answer every row of a file.

    A line of the output has the row's number, file and line, its last turn as "prompt", the
    "answer", whether it "ended" by itself, its number of "tokens", and as "reference" the answer in
    the row. Earlier turns of a row are part of the prompt.

    Example: glmtune predict rows.json --model ./chatglm3-6b --adapter out/chatglm3-lora
    -o answers.jsonl
    """
    recipe = read_recipe(data, model, overrides or [], output)

    from glmtune.use.predict import check_output

    check_output(output, resume=resume, overwrite=overwrite)

    with loading():
        from glmtune.use.generate import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    answer_rows(
        recipe,
        adapter,
        output,
        sampling,
        layout=layout,
        dtype=dtype,
        batch_size=batch_size,
        resume=resume,
        any_template=any_template,
    )


def read_recipe(data: str, model: str | None, overrides: list[str], output: Path) -> "Recipe":
    """Return the recipe that names the rows and the model.

    Raises:
        RecipeError: as `recipe_for_rows`.
    """
    if model is None and not is_recipe(data):
        raise RecipeError(
            f"--model is missing. Try: glmtune predict {data} --model ./chatglm3-6b -o {output}"
        )
    from glmtune.recipe.recipe import Recipe

    values: dict[str, str | int | None] = {"model.name_or_path": model, "data.bad_rows": "fail"}
    return recipe_for_rows(data, values, overrides, Recipe)


def answer_rows(
    recipe: "Recipe",
    adapter: Path | None,
    output: Path,
    sampling: "Sampling",
    *,
    layout: Layout | None,
    dtype: Dtype,
    batch_size: int,
    resume: bool,
    any_template: bool,
) -> None:
    """Answer the rows of `data.train`, except those that an interrupted run has answered.

    Args:
        recipe: its model and its data.
        adapter: the folder of an adapter.
        output: the file to write.
        sampling: how tokens are chosen.
        layout, dtype, batch_size, resume, any_template: the options of the command.
    """
    from glmtune.use.answer_rows import open_rows

    rows = open_rows(
        recipe.model.name_or_path,
        recipe.data,
        sampling,
        adapter=adapter,
        layout=layout,
        dtype=dtype,
        any_template=any_template,
    )
    answers = rows.file(output, resume=resume)
    new = rows.answers(done=answers.lines, batch_size=batch_size)
    write_answers(answers, new, len(rows.questions), output)


def write_answers(
    answers: "AnswerFile", new: Iterator[dict[str, Any]], total: int, output: Path
) -> None:
    """Write answers as they come, and print how many there are.

    Args:
        answers: the file, with the answers of an interrupted run.
        new: the other answers.
        total: number of rows.
        output: the path of the file.
    """
    try:
        answers.write(
            show_progress(
                new,
                total,
                done=len(answers.lines),
                num_tokens=lambda answer: answer["tokens"] + answer["ended"],
            )
        )
    except KeyboardInterrupt:
        echo(
            f"Stopped: {len(answers.lines):,} of {total:,} rows are answered, in "
            f"{answers.partial}. Continue with the same command and --resume.",
            err=True,
        )
        raise typer.Exit(130) from None
    num_ended = sum(line["ended"] for line in answers.lines.values())
    echo(f"{output}: {total:,} answers, {num_ended:,} of them ended by themselves")
