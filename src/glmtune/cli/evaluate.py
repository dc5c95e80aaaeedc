"""`glmtune evaluate`: score a model's answers, its choices among options, or texts."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glmtune.cli.options import (
    AdapterOption,
    AnyTemplate,
    AsJson,
    DtypeOption,
    MaxNewTokens,
    ModelArgument,
    PromptLayout,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    recipe_for_rows,
)
from glmtune.cli.printing import echo, print_wide, show_progress
from glmtune.errors import RecipeError
from glmtune.gc_pause import loading
from glmtune.recipe.choices import METRIC_NAMES
from glmtune.recipe.shipped import is_recipe

if TYPE_CHECKING:
    from glmtune.recipe.sections import DataSection
    from glmtune.use.evaluate.judge import Judge
    from glmtune.use.evaluate.kept import Line
    from glmtune.use.evaluate.results import Evaluation, Score
    from glmtune.use.evaluate.run import OpenedModel
    from glmtune.use.evaluate.task import Task
    from glmtune.use.generate import Sampling

TaskChoice = Literal["answers", "choice", "perplexity"]
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=.*", re.DOTALL)
MAX_SUBJECTS = 100  # shown


def evaluate(
    model: ModelArgument,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Rows as in data.train; or a recipe, for its data.eval; then KEY=VALUE, such as "
            "data.columns={prompt: question}.",
            show_default=False,
        ),
    ],
    adapter: AdapterOption = None,
    task: Annotated[
        TaskChoice,
        typer.Option(
            help="answers: generate and compare with the rows' own; choice: questions with options "
            "(C-Eval, CMMLU, MMLU, GAOKAO); perplexity: of texts."
        ),
    ] = "answers",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            help=f"{', '.join(METRIC_NAMES)}; or FILE.py:FUNCTION. Several times, or with commas. "
            "Default: exact, rouge-l-char.",
            show_default=False,
        ),
    ] = None,
    with_base: Annotated[
        bool,
        typer.Option("--with-base", help="Evaluate the base without the adapter too, and compare."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="JSON file of the result, the answers next to it. Default: scores.json in the "
            "folder of the run that trained the model, or here.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a result; answers that fit are kept.")
    ] = False,
    shots: Annotated[
        int, typer.Option(min=0, max=100, help="choice: solved examples before each question.")
    ] = 5,
    by: Annotated[
        Literal["likelihood", "generation"],
        typer.Option(help="choice: the likeliest letter, or the letter in a generated answer."),
    ] = "likelihood",
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="answers: an OpenAI-compatible API whose model compares the answers with the "
            "base's or the references, such as http://127.0.0.1:8000/v1.",
        ),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="Name of the model there.")] = "default",
    layout: PromptLayout = None,
    dtype: DtypeOption = "auto",
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 0.8,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows at once; fewer need less memory.")
    ] = 32,
    any_template: AnyTemplate = False,
    as_json: AsJson = False,
) -> None:
    """Measure how good a model is, with intervals, and whether tuning made it better.

    An evaluation that was interrupted continues when the command is repeated, and another metric
    uses the answers that are there.

    Example: glmtune evaluate out/chatglm3-lora held_out.json --with-base -m exact -m rouge-l
    """
    if judge is not None and task != "answers":
        raise RecipeError(f"--judge compares answers, and --task is {task}. Leave one of them out.")
    sources, overrides = split_words(data)
    target = output or default_output(model, adapter, task)

    from glmtune.use.evaluate.kept import check_can_write

    check_can_write(target, overwrite=overwrite)
    section = read_section(sources, overrides, model)

    with loading():
        from glmtune.use.evaluate.judge import Judge
        from glmtune.use.evaluate.run import evaluate as run
        from glmtune.use.evaluate.run import open_model
        from glmtune.use.evaluate.task import ModelChoice
        from glmtune.use.generate import Sampling

    judged_by = None if judge is None else Judge(judge, judge_model)  # a wrong URL is refused
    choice = ModelChoice(
        model, None if adapter is None else str(adapter), layout, dtype, any_template, batch_size
    )
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed=seed)
    opened = open_model(choice)
    if task == "answers":
        made = answers_task(opened, section, names_of(metric), sampling)
    elif task == "choice":
        made = choice_task(opened, section, shots, by, sampling)
    else:
        made = perplexity_task(opened, section)
    try:
        result = run(
            opened, made, target, with_base=with_base, overwrite=overwrite, show=show_lines
        )
        if judged_by is not None:
            result = ask_judge(judged_by, made, result, target, overwrite=overwrite)
    except KeyboardInterrupt:
        echo("Stopped. The answers so far are kept; repeat the command to continue.", err=True)
        raise typer.Exit(130) from None
    show_result(result, target, as_json=as_json)
    rewrite_run_page(target.absolute().parent)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the sources from `key=value`.

    Raises:
        RecipeError: there is no source.
    """
    overrides = [word for word in words if _OVERRIDE.fullmatch(word) and not Path(word).exists()]
    sources = [word for word in words if word not in overrides]
    if not sources:
        raise RecipeError(
            f"{' '.join(words)}: names no data. Try: glmtune evaluate MODEL held_out.json "
            f"{words[0]}"
        )
    return sources, overrides


def default_output(model: str, adapter: Path | None, task: TaskChoice) -> Path:
    """Return where the result goes: into the folder of the run, or the working directory."""
    from glmtune.use.evaluate.names import scores_file

    name = scores_file(task)
    folder = adapter or Path(model)
    return folder / name if is_run(folder) else Path(name)


def is_run(folder: Path) -> bool:
    """Whether a run wrote its report into a folder."""
    return (folder / "recipe.yaml").is_file() and (folder / "report.json").is_file()


def read_section(sources: Sequence[str], overrides: list[str], model: str) -> "DataSection":
    """Return the rows to evaluate, as a `data` section.

    Raises:
        RecipeError: a key is unknown, or a recipe has no data.eval.
    """
    from glmtune.recipe.recipe import Recipe

    values: dict[str, str | int | None] = {"model.name_or_path": model, "data.bad_rows": "fail"}
    recipes = [source for source in sources if is_recipe(source)]
    if not recipes:
        given = f"data.train={json.dumps(list(sources), ensure_ascii=False)}"
        return recipe_for_rows(sources[0], values, [given, *overrides], Recipe).data
    if len(sources) > 1:
        raise RecipeError(f"{recipes[0]} is a recipe, and names its own data. Give it alone.")
    recipe = recipe_for_rows(recipes[0], values, overrides, Recipe)
    if not recipe.data.eval:
        raise RecipeError(
            f"{recipes[0]}: has no data.eval, whose rows would be evaluated. Name the rows: "
            f"glmtune evaluate {model} held_out.json"
        )
    return recipe.data.model_copy(update={"train": recipe.data.eval, "eval": ()})


def names_of(given: Sequence[str] | None) -> list[str]:
    """Return the names of metrics, of which several may be in one text."""
    from glmtune.use.evaluate.answers import DEFAULT_METRICS

    names = [name.strip() for text in given or () for name in text.split(",")]
    return [name for name in names if name] or [*DEFAULT_METRICS]


def answers_task(
    opened: "OpenedModel", section: "DataSection", metrics: Sequence[str], sampling: "Sampling"
) -> "Task":
    """Make the task of answering rows."""
    from glmtune.use.evaluate import answers

    return answers.answers_task(
        section,
        opened.template,
        answers.choose_metrics(metrics),
        sampling=sampling,
        context_length=opened.context_length,
    )


def ask_judge(
    judge: "Judge", task: "Task", result: "Evaluation", target: Path, *, overwrite: bool
) -> "Evaluation":
    """Let a judge compare the answers."""
    from glmtune.use.evaluate.answers import AnswersTask
    from glmtune.use.evaluate.judge import add_verdicts

    assert isinstance(task, AnswersTask)
    return add_verdicts(judge, task, result, target, overwrite=overwrite, show=show_lines)


def show_lines(lines: Iterable["Line"], total: int, done: int) -> Iterator["Line"]:
    """Show the progress on a terminal."""
    return show_progress(
        lines, total, done=done, num_tokens=lambda line: line.tokens + 1, what="evaluating"
    )


def show_result(result: "Evaluation", target: Path, *, as_json: bool) -> None:
    """Print a result: a table, or JSON for programs."""
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
        return
    from rich.table import Table

    tuned = "tuned" if result.adapter else "model"
    table = Table(
        title=f"{result.num_rows:,} rows of {', '.join(result.data)}", title_justify="left"
    )
    base = result.base
    headings = ("metric", *(("base",) if base else ()), tuned, "rows", "95 %")
    for heading in (*headings, *(("tuned - base", "") if base else ())):
        table.add_column(heading, overflow="fold")
    for name, score in result.scores.items():
        cells = [shown_name(name), *([shown(base.get(name))] if base else []), shown(score)]
        cells += [f"{score.num_rows:,}", f"{score.low:.2f} to {score.high:.2f}"]
        table.add_row(*cells, *(shown_difference(result, name) if base else ()))
    print_wide(table)
    show_subjects(result)
    for note in result.notes:
        echo(f"note: {note}")
    echo(f"{target}: the result; the answers are in {target.with_name(result.answers or '')}")


UNITS = {"length": "length (tokens)", "stop": "stop (%)"}


def shown_name(name: str) -> str:
    """Return the name of a metric with its unit."""
    return UNITS.get(name, name)


def shown(score: "Score | None") -> str:
    """Return the value of a score."""
    if score is None:
        return ""
    corpus = "" if score.corpus is None else f" (corpus {score.corpus:.2f})"
    return f"{score.value:.2f}{corpus}"


def shown_difference(result: "Evaluation", name: str) -> tuple[str, str]:
    """Return the difference of two models and the verdict."""
    found = result.differences.get(name)
    if found is None:
        return "", ""
    p = f"p = {found.p:.3f}" if found.p >= 0.001 else "p < 0.001"
    verdict = "" if found.verdict is None else f"{found.verdict}, {p}"
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})", verdict


def show_subjects(result: "Evaluation") -> None:
    """Print a table of the subjects, if there are any."""
    if not result.by_subject:
        return
    from rich.table import Table

    table = Table()
    for heading in ("subject", *(("base",) if result.base else ()), "accuracy", "rows", "95 %"):
        table.add_column(heading, overflow="fold")
    for subject, part in list(result.by_subject.items())[:MAX_SUBJECTS]:
        score = part.score
        base = [shown(part.base)] if result.base else []
        interval = f"{score.low:.1f} to {score.high:.1f}"
        table.add_row(subject, *base, shown(score), f"{score.num_rows:,}", interval)
    print_wide(table)


def rewrite_run_page(folder: Path) -> None:
    """Write the report and the card of a run again, now with its scores."""
    if not is_run(folder):
        return
    from glmtune.prove.folder_card import rewrite_card
    from glmtune.prove.report.page import rewrite_report

    echo(f"report: {rewrite_report(folder)}")
    rewrite_card(folder)


def choice_task(
    opened: "OpenedModel",
    section: "DataSection",
    shots: int,
    by: Literal["likelihood", "generation"],
    sampling: "Sampling",
) -> "Task":
    """Make the task of choosing among options."""
    from dataclasses import replace

    from glmtune.use.evaluate import choice

    tokens = min(sampling.max_new_tokens, choice.ANSWER_TOKENS)
    return choice.choice_task(
        [str(source) for source in section.train],
        opened.template,
        split=section.split,
        num_shots=shots,
        by=by,
        sampling=replace(sampling, max_new_tokens=tokens),
        context_length=opened.context_length,
    )


def perplexity_task(opened: "OpenedModel", section: "DataSection") -> "Task":
    """Make the task of measuring texts."""
    from glmtune.model.load import load_tokenizer
    from glmtune.use.evaluate import perplexity
    from glmtune.use.open import tokenizer_folder

    tokenizer = load_tokenizer(tokenizer_folder(opened.base, opened.adapter))
    return perplexity.perplexity_task(section, tokenizer, context_length=opened.context_length)
