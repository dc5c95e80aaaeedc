"""`glmtune plan`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.info import print_wide
from glmtune.cli.train import as_overrides
from glmtune.gc_pause import loading
from glmtune.units import duration, readable

if TYPE_CHECKING:
    from rich.table import Table

    from glmtune.train.plan.forecast import Plan, Target
    from glmtune.train.plan.probe import Probe

Lines = Iterator[tuple[str, str]]


def plan(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Change single values; --key value works too."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", help="Reckon for a GPU of this size too, such as 24GB."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Load the model and measure 3 steps as well.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say whether a run will fit, and how long it will take; no weights are read.

    Example: glmtune plan recipes/chatglm3-lora.yaml data.max_length=512 --device 24GB
    """
    from glmtune.recipe.reading import load_recipe

    resolved = load_recipe(recipe, as_overrides([*(overrides or []), *context.args]))

    with loading():
        from glmtune.train.plan.forecast import make_plan
        from glmtune.train.plan.probe import probe as take_probe

    made = make_plan(resolved, device or [])
    if as_json:
        typer.echo(_as_json(made, take_probe(resolved) if probe else None))
        return
    print_wide(memory_table(made))
    _print([*workload_lines(made), *target_lines(made), *time_lines(made)])
    if probe:
        _print(probe_lines(made, take_probe(resolved)))
    elif made.pack_seconds is not None:
        _print([("", "time is estimated from two layers; --probe takes 3 real steps")])
    typer.echo(ACCURACY)


ACCURACY = (
    "Memory is reckoned without gaps in the heap: runs on a CPU have taken from a tenth less to a "
    "tenth more. Near the limit, use --probe."
)


def _print(lines: Iterable[tuple[str, str]]) -> None:
    for label, value in lines:
        typer.echo(f"{label:<14} {value}".rstrip())


def _as_json(made: "Plan", measured: "Probe | None") -> str:
    import json
    from dataclasses import asdict

    content = asdict(made)
    for target, written in zip(made.targets, content["targets"], strict=True):
        written["memory"] |= {"peak": target.memory.peak, "required": target.memory.required}
        written |= {"fits": target.fits, "would_fit": target.would_fit}
    content["probe"] = None if measured is None else asdict(measured)
    return json.dumps(content, ensure_ascii=False, indent=2)


def memory_table(made: "Plan") -> "Table":
    """Give the memory by what it is for, a column for each place to run."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("memory")
    for target in made.targets:
        table.add_column(target.name, justify="right", no_wrap=True)
    parts = {
        "base": "libraries, or CUDA",
        "weights": "frozen weights",
        "trained": "trained weights",
        "gradients": "gradients",
        "optimizer": "optimizer",
        "activations": "activations and logits",
        "proof": "  or the proof at the end",
        "required": "needed",
        "loading": "  while loading, with files",
    }
    for part, label in parts.items():
        sizes = [getattr(target.memory, part) for target in made.targets]
        if any(size > 0 for size in sizes):  # the proof may need less than a step
            table.add_row(label, *(readable(size) if size > 0 else "-" for size in sizes))
    return table


def workload_lines(made: "Plan") -> Lines:
    """Say what there is to learn, and what the heaviest pack is."""
    yield "", ""
    workload = made.workload
    steps = "" if workload.num_steps is None else f", {workload.num_steps:,} steps"
    if workload.num_rows is None:
        yield "data", f"not known{steps}; packs are taken to be full. {made.note}"
    else:
        tokens = f", {workload.num_tokens:,} tokens in all"
        yield "data", f"{workload.num_rows:,} rows{steps}{tokens}"
    yield (
        "heaviest pack",
        f"{len(workload.lengths)} rows of together {sum(workload.lengths):,} tokens, "
        f"{sum(workload.learned):,} of them learned",
    )


def target_lines(made: "Plan") -> Lines:
    """Say for each place whether the run fits, or what would make it fit."""
    for target in made.targets:
        free, needed = readable(target.capacity), readable(target.memory.required)
        label = "fits" if target.fits else "does not fit"
        yield label, f"{target.name}: {needed} needed, {free} free"
        yield from _change_lines(target)


def _change_lines(target: "Target") -> Lines:
    for index, change in enumerate(target.changes):
        yield (
            ("" if index else "change"),
            f"{' '.join(change.overrides)}: {readable(change.required)}",
        )
    if target.changes and target.would_fit:
        yield "", "then it fits" if len(target.changes) == 1 else "with all of these it fits"
    elif not target.fits:
        yield "", "and that is not enough: take a smaller model or a larger machine"


def time_lines(made: "Plan") -> Lines:
    """Say how long the run takes on this machine."""
    if made.pack_seconds is None:
        yield "time", "not measured, since the run does not fit here"
        return
    run = "not known without the data"
    if made.run_seconds is not None:
        run = f"about {duration(made.run_seconds)} here, without evaluation and saving"
    yield "time", f"{run}; {made.pack_seconds:.3g} s for the heaviest pack"


def probe_lines(made: "Plan", measured: "Probe") -> Lines:
    """Put what was measured beside what was predicted."""
    peak, took = made.targets[0].memory.peak, measured.peak_bytes
    said = f"{readable(peak)} predicted ({100 * (peak / took - 1):+.0f} %)"
    yield "probe", f"{readable(took)} at most, {said}"
    rate, tokens = measured.tokens_per_second, made.workload.num_tokens
    run = "" if tokens is None else f", so the run takes about {duration(tokens / rate)}"
    yield "", f"{rate:,.0f} tokens/s{run}"
