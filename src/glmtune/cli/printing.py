"""What commands print: tables, labelled lines, and texts from data that are safe for a terminal."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from glmtune.inspect.visible import WHITE_SPACE, visible
from glmtune.messages import padded, translate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from glmtune.inspect.row import SeenRow
    from glmtune.prove.proof import Proof
    from glmtune.template.pieces import Piece
    from glmtune.train.run import Result
    from glmtune.use.export.run import Exported

Answer = TypeVar("Answer")
Lines = Iterator[tuple[str, str]]  # a label and its value; no label continues the line before

LEARNED = "bold green"
BRACKETS = ("⟦", "⟧")  # around learned tokens if there is no color
BORDER = "│"  # between pieces


def echo(text: object, *, err: bool = False, **style: Any) -> None:
    """Print a text of ours in the language of the reader.

    Args:
        text: a message. What is data, such as JSON or an answer, is printed by `typer.echo`.
        err: on stderr.
        style: as `typer.style` takes it.
    """
    shown = translate(str(text))
    typer.echo(typer.style(shown, **style) if style else shown, err=err)


def print_lines(lines: Iterable[tuple[str, str]], label_width: int) -> None:
    """Print labelled lines."""
    for label, value in lines:
        typer.echo(f"{padded(translate(label), label_width)} {translate(value)}".rstrip())


def make_console(**settings: Any) -> "Console":
    """Make a console of rich that shows the texts it is given in the language of the reader.

    Data is given to it as `rich.text.Text`, which it leaves alone.

    Args:
        settings: as `rich.console.Console` takes them.
    """
    from rich.console import Console
    from rich.text import Text

    class LocalConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(translate(text), **options)

    return LocalConsole(**settings)


def print_json(content: Any) -> None:
    """Print JSON for programs."""
    import json

    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def print_wide(table: "Table") -> None:
    """Print a table; if the output is not a terminal, as wide as its text."""
    console = make_console(highlight=False)
    if not console.is_terminal:
        console = make_console(highlight=False, width=200)
    console.print(table)


def print_stopped(result: "Result") -> None:
    """Print on stderr how to continue an interrupted run."""
    echo(
        f"Stopped after {result.num_steps} steps; a checkpoint is in {result.adapter_dir}. "
        "Continue with the same command and --resume.",
        err=True,
    )


def training_line(what: str, result: "Result") -> str:
    """Return a line with the steps, the losses and the folder of a finished run."""
    losses = "" if result.loss is None else f", loss {result.loss:.4f}"
    losses += "" if result.eval_loss is None else f", held-out loss {result.eval_loss:.4f}"
    steps = f"after {result.num_steps} steps"
    if result.saved_step not in (None, result.num_steps):
        steps = f"of step {result.saved_step}, the best of {result.num_steps}"
    return f"{what} {steps}{losses}: {result.adapter_dir}"


def print_verdict(proofs: "Sequence[Proof]") -> None:
    """Print what the proofs of a run found: what failed and what to do first, then the counts."""
    if not proofs:
        return
    counts = Counter(proof.verdict for proof in proofs)
    for proof in proofs:
        if proof.verdict == "failed":
            echo(f"failed: {proof.name}: {proof.detail}", fg=typer.colors.RED)
    not_run = f", {counts['not run']} not run" if counts["not run"] else ""
    color = typer.colors.RED if counts["failed"] else typer.colors.GREEN
    echo(
        f"{len(proofs)} proofs: {counts['passed']} passed, {counts['failed']} failed{not_run}",
        fg=color,
        bold=True,
    )


def print_exported(result: "Exported") -> None:
    """Print what an export has written, its proofs, and the line that uses it."""
    echo(f"{result.folder}: complete")
    for check in result.checks:
        echo(f"  {check.verdict}: {check.name} ({check.detail})")
    if not result.checks:
        echo("  not run: the comparison with the source (--no-proof)")
    echo(f"Use it:  {result.start}")


def printable(text: str, *, keep_lines: bool = False) -> str:
    """Make a text from data safe for a terminal, with visible white space.

    Args:
        text: any text.
        keep_lines: leave line breaks as they are.
    """
    return visible(text, WHITE_SPACE | {"\n": "\n"} if keep_lines else WHITE_SPACE)


def print_row(seen: "SeenRow", console: "Console", *, with_ids: bool) -> None:
    """Print a row: its place and template, its tokens, and what they decode to."""
    from rich.text import Text

    described = ", ".join(f"{key} {value}" for key, value in seen.template.items())
    has_color = console.color_system is not None and not console.no_color
    console.print(f"{seen.place}  (format {seen.format}; template {described})", markup=False)
    learned = "green" if has_color else "".join(BRACKETS)
    console.print(f"{seen.num_tokens} tokens, {seen.num_learned} learned ({learned})")
    if seen.fate:
        console.print(f"note: {seen.fate}", style="yellow")
    console.print()
    if with_ids:
        for line in piece_lines(seen.pieces, has_color=has_color):
            console.print(line)
    else:
        console.print(flowing_text(seen.pieces, has_color=has_color))
    for label, text in (("input", seen.input_text), ("labels", seen.label_text)):
        console.print()
        console.print(f"{translate(label)}:", style="bold")
        console.print(Text(printable(text, keep_lines=True)))
    console.print()


def flowing_text(pieces: "tuple[Piece, ...]", *, has_color: bool) -> "Text":
    """Join the pieces of a row as text, with borders between them."""
    from rich.text import Text

    result = Text()
    is_inside = False
    for index, piece in enumerate(pieces):
        if piece.is_learned != is_inside and not has_color:
            result.append(BRACKETS[0] if piece.is_learned else BRACKETS[1])
        elif index:
            result.append(BORDER, style="dim")
        is_inside = piece.is_learned
        result.append(printable(piece.text), style=_style(piece))
    if is_inside and not has_color:
        result.append(BRACKETS[1])
    return result


def piece_lines(pieces: "tuple[Piece, ...]", *, has_color: bool) -> "list[Text]":
    """Write a line per piece: position, ids, text."""
    from rich.text import Text

    lines, position = [], 0
    for piece in pieces:
        ids = " ".join(map(str, piece.ids))
        text = printable(piece.text).replace("⏎\n", "⏎").replace(" ", "▁")
        if piece.is_learned and not has_color:
            text = text.join(BRACKETS)
        line = Text(f"{position:>6}  {ids:<24}  ", style="dim")
        line.append(text, style=_style(piece))
        lines.append(line)
        position += len(piece.ids)
    return lines


def _style(piece: "Piece") -> str:
    color = LEARNED if piece.is_learned else "not bold"
    return f"{color} reverse" if piece.is_special else color


def show_progress(
    answers: Iterable[Answer],
    total: int,
    *,
    done: int,
    num_tokens: Callable[[Answer], int],
    what: str = "answering",
) -> Iterator[Answer]:
    """Yield answers, and show their number, the rate and the remaining time on a terminal.

    Args:
        answers: as they come.
        total: of all rows.
        done: rows that were answered before.
        num_tokens: of an answer.
        what: is being done, for the line of the bar.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    began, tokens = time.perf_counter(), 0
    with Progress(
        TextColumn(translate(what)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} " + translate("tokens/s")),
        TimeRemainingColumn(),
        console=(console := make_console(stderr=True)),
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=total, completed=done, rate=0.0)
        for answer in answers:
            tokens += num_tokens(answer)
            rate = tokens / (time.perf_counter() - began)
            bar.update(task, advance=1, rate=rate)
            yield answer
