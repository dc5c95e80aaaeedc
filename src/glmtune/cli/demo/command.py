"""`glmtune demo`: fine-tune the model of the package on a CPU, and show every step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.printing import make_console
from glmtune.gc_pause import loading
from glmtune.messages import translate

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from glmtune.cli.demo.folder import DemoFolder
    from glmtune.cli.demo.score import Answers
    from glmtune.prove.proof import Proof
    from glmtune.train.run import Result
    from glmtune.use.evaluate.answers import AnswersTask
    from glmtune.use.evaluate.results import Evaluation
    from glmtune.use.generate import Sampling

NUM_STAGES = 5
SHOWN_ROWS = 8
HELLO = "你好，你是谁？"


def demo(
    dir: Annotated[Path, typer.Option("--dir", help="Folder for the rows and the adapter.")] = Path(
        "glmtune-demo"
    ),
) -> None:
    """Teach nano, the model in the package, to reduce fractions: offline, on a CPU, in minutes.

    Example: glmtune demo --dir /tmp/demo
    """
    run_demo(dir)


def run_demo(dir: Path, overrides: Sequence[str] = ()) -> None:
    """Run and show every step; `overrides` change the recipe."""
    console = make_console(highlight=False, soft_wrap=True)
    started = time.perf_counter()
    console.print("Loading PyTorch and transformers ...", style="dim")

    with loading():
        from transformers.utils import logging

        from glmtune.cli.demo.folder import prepare
        from glmtune.cli.demo.score import answer, count_right, read_questions, write_scores
        from glmtune.use.open import open_session

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # for files that load at once

    with _stage(console, 1, "nano, a small ChatGLM that comes with the package"):
        folder = prepare(dir, overrides)
        model = folder.recipe.model.name_or_path
        base = open_session(model, dtype="float32", sampling=_greedy())
        show_base(console, base.model)
        say(console, HELLO, base.stream(HELLO))
    with _stage(console, 2, "The rows, in alpaca format"):
        task = read_questions(folder.held_out, base.template)
        show_rows(console, folder, len(task.rows))
    with _stage(console, 3, f"The base answers the {len(task.rows)} held-out questions"):
        before = answer(base.model, task)
        console.print(f"exact matches: {count_right(task, before)} of {len(task.rows)}")
    with _stage(console, 4, f"Training, as by `glmtune train {folder.recipe_file}`"):
        from glmtune.train.run import fine_tune

        result = fine_tune(folder.recipe)
        if not result.is_finished:
            console.print("Stopped. The next `glmtune demo` starts from the beginning.")
            raise typer.Exit(130)
        show_result(console, folder, result)
    with _stage(console, NUM_STAGES, "The tuned model answers the same questions"):
        tuned = open_session(model, folder.adapter, dtype="float32", sampling=_greedy())
        after = answer(tuned.model, task)
        show_answers(console, task, before, after)
        show_scores(console, write_scores(model, folder.adapter, task, before, after))
        rewrite_pages(folder.adapter)
        say(console, HELLO, tuned.stream(HELLO))
    show_next(console, folder, time.perf_counter() - started)


@contextmanager
def _stage(console: "Console", number: int, title: str) -> Iterator[None]:
    """Print the title of a stage, and at its end how long it took."""
    console.rule(f"[bold]{number}/{NUM_STAGES}  {translate(title)}", align="left")
    started = time.perf_counter()
    yield
    console.print(f"{time.perf_counter() - started:.1f} s\n", style="dim")


def _greedy() -> "Sampling":
    from glmtune.use.generate import Sampling

    return Sampling(temperature=0, max_new_tokens=64)


def show_base(console: "Console", model: "PreTrainedModel") -> None:
    """Print the size of the base."""
    config = model.config
    console.print(
        f"{config.num_layers} layers, {config.hidden_size} wide, {config.padded_vocab_size:,} "
        f"tokens, {model.num_parameters():,} parameters: a thousandth of ChatGLM3-6B."
    )


def show_rows(console: "Console", folder: "DemoFolder", num_questions: int) -> None:
    """Show a few rows, and one as the tokens that training sees."""
    from rich.text import Text

    from glmtune.cli.printing import print_row
    from glmtune.data.sources import read_rows
    from glmtune.inspect.row import see_rows

    rows = list(read_rows(folder.train))
    console.print(f"{folder.train}: {len(rows)} rows to learn, such as")
    for row in rows[:: len(rows) // 4][1:4]:
        console.print(Text(f"  instruction {row['instruction']}"))
        if row["input"]:
            console.print(Text(f"  input       {row['input']}"))
        console.print(Text(f"  output      {row['output']}\n", style="green"))
    console.print(
        f"{folder.held_out}: {num_questions} fractions to ask. This run never sees them, and the "
        "rows that nano was tuned on have no fractions."
    )
    replay, asked = folder.recipe.data.replayed, folder.recipe.checks.general_rows
    if replay is not None:
        console.print(
            f"{', '.join(map(str, replay.train))}: rows that nano knows, some repeated in each "
            f"epoch. {', '.join(asked)}: other such rows, to measure forgetting."
        )
    console.print("\nOne row as training sees it:")
    for seen in see_rows(folder.recipe):
        print_row(seen, console, with_ids=False)


def show_result(console: "Console", folder: "DemoFolder", result: "Result") -> None:
    """Show the losses of a run, its files and its proofs."""
    from glmtune.prove.metrics import METRICS, read_metrics
    from glmtune.prove.report.charts import text_curve

    lines = read_metrics(folder.adapter / METRICS)
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    weights = folder.adapter / "adapter_model.safetensors"
    on_held_out = f", held-out loss {held_out[0]:.3f} -> {held_out[-1]:.3f}" if held_out else ""
    console.print(
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {result.num_steps} steps{on_held_out}"
    )
    for line in text_curve(losses):
        console.print(line, markup=False)
    console.print(f"curve:   {folder.adapter / 'loss.svg'}")
    console.print(f"adapter: {weights}, {weights.stat().st_size / 2**20:.1f} MiB")
    show_proofs(console, folder, result.proofs)


def show_proofs(console: "Console", folder: "DemoFolder", proofs: "Sequence[Proof]") -> None:
    """Show the proofs of a run that did not pass, and count the others."""
    passed = sum(proof.verdict == "passed" for proof in proofs)
    report = folder.adapter / "report.html"
    console.print(f"proofs:  {passed} of {len(proofs)} passed, {report}")
    for proof in proofs:
        if proof.verdict != "passed":
            line = f"  {proof.verdict}: {proof.name}: {proof.detail}"
            console.print(line, style="red", markup=False)


def show_answers(
    console: "Console",
    task: "AnswersTask",
    before: "Answers",
    after: "Answers",
) -> None:
    """Count right answers, and show those of the base and the tuned model side by side."""
    from rich.table import Table
    from rich.text import Text

    from glmtune.cli.demo.score import count_right

    questions, rows = task.questions, task.rows
    wrong = [row for row in rows if after[row].answer.strip() != questions[row].reference]
    total, right = len(rows), count_right(task, after)
    console.print(
        f"exact matches: {count_right(task, before)} of {total} before, "
        f"[bold]{right} of {total}[/bold] after ({right / total:.1%})"
    )
    table = Table()
    for heading in ("held-out question", "base", "tuned", ""):
        table.add_column(heading, overflow="fold")  # Chinese has no spaces to break at
    chosen = rows[:: -(-total // SHOWN_ROWS)]
    for row in [*chosen, *[row for row in wrong if row not in chosen][:3]]:
        question, is_right = questions[row], row not in wrong
        expected = _step_by_step(question.reference or "")
        table.add_row(
            Text(question.text.replace("\n", " / ")),
            Text(_one_line(before[row].answer), style="dim"),
            Text(_step_by_step(after[row].answer), style="green" if is_right else "red"),
            Text(translate("right") if is_right else translate(f"wrong, expected\n{expected}")),
        )
    console.print(table, soft_wrap=False)
    if wrong:
        console.print("Its mistakes are at the end of the table.", style="dim")


def show_scores(console: "Console", result: "Evaluation") -> None:
    """Show every score with its interval and the verdict; they are in the report, too."""
    for name, score in result.scores.items():
        difference = result.differences.get(name)
        verdict = "" if difference is None or difference.verdict is None else difference.verdict
        base = (result.base or {})[name].value
        console.print(
            f"{name:<13}{base:7.2f} -> {score.value:6.2f}  "
            f"(95 %: {score.low:.2f} to {score.high:.2f})  {translate(verdict)}"
        )


def rewrite_pages(adapter: Path) -> None:
    """Write the report and the card again, now with the scores."""
    from glmtune.prove.folder_card import rewrite_card
    from glmtune.prove.report.page import rewrite_report

    rewrite_report(adapter)
    rewrite_card(adapter)


def _one_line(text: str) -> str:
    """Shorten the text of an untrained model to fit a table."""
    from glmtune.cli.printing import printable

    line = printable(" ".join(text.split()))
    return line if len(line) <= 16 else f"{line[:15]}…"


def _step_by_step(answer: str) -> str:
    """Put each step on its own line."""
    return answer.replace("，", "，\n")


def say(console: "Console", text: str, pieces: Iterator[str]) -> None:
    """Print a question, and the answer as it is generated."""
    from rich.text import Text

    console.print(Text(f"> {text.replace(chr(10), ' / ')}", style="bold"))
    for piece in pieces:
        console.print(Text(piece, style="green"), end="")
    console.print()


def show_next(console: "Console", folder: "DemoFolder", seconds: float) -> None:
    """Suggest what to do next."""
    console.rule(f"[bold]Done in {seconds:.0f} s", align="left")
    for what, command in (
        (
            "ask it yourself",
            f"glmtune chat {folder.recipe.model.name_or_path} --adapter {folder.adapter}",
        ),
        (
            "check your own rows",
            "glmtune lint rows.json --model ./chatglm3-6b",
        ),
        (
            "tune ChatGLM3-6B with them",
            "glmtune train chatglm3-lora model.name_or_path=./chatglm3-6b "
            "data.train=rows.json output.dir=out",
        ),
        ("and talk to it", "glmtune chat ./chatglm3-6b --adapter out"),
    ):
        console.print(f"{translate(what)}:\n    [bold]{command}[/bold]")
