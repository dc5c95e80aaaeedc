"""`glmtune plan`: estimate the memory and the time of a run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune.cli.given_recipe import DataOption, ModelOption, OptionalRecipe, given_recipe
from glmtune.cli.options import AsJson, Overrides
from glmtune.cli.printing import Lines, echo, print_json, print_lines, print_wide
from glmtune.gc_pause import loading
from glmtune.units import duration, readable

if TYPE_CHECKING:
    from rich.table import Table

    from glmtune.train.plan.forecast import Plan, Target
    from glmtune.train.plan.probe import Probe

LABEL_WIDTH = 14
FROM_PEAK = "expected from the peak of this card"


def plan(
    context: typer.Context,
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    model: ModelOption = None,
    data: DataOption = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", help="Also estimate for a GPU, by name (4090) or memory (24GB)."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also load the model and measure 3 steps.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Estimate whether a run fits into memory and how long it takes; no weights are read.

    Example: glmtune plan chatglm3-lora data.max_length=512 --device 4090
    """
    from glmtune.train.plan.cards import find_card

    for name in device or []:  # a wrong name is refused before rows are read
        find_card(name)
    words = [*(overrides or []), *context.args]
    resolved = given_recipe("plan", recipe, words, model=model, data=data).load()

    with loading():
        from glmtune.train.plan.forecast import make_plan
        from glmtune.train.plan.probe import probe as take_probe

    made = make_plan(resolved, device or [])
    if as_json:
        print_json(_as_json(made, take_probe(resolved) if probe else None))
        return
    print_wide(memory_table(made))
    print_lines([*workload_lines(made), *target_lines(made), *time_lines(made)], LABEL_WIDTH)
    if probe:
        print_lines(probe_lines(made, take_probe(resolved)), LABEL_WIDTH)
    elif made.pack_seconds is not None:
        note = "time is estimated from one layer; --probe takes 3 real steps"
        print_lines([("", note)], LABEL_WIDTH)
    echo(ACCURACY)


ACCURACY = (
    "The estimate of memory ignores heap fragmentation: runs on a CPU took from 10 % less to 10 % "
    "more. Near the limit, use --probe."
)


def _as_json(made: "Plan", measured: "Probe | None") -> dict[str, Any]:
    from dataclasses import asdict

    content = asdict(made)
    for target, written in zip(made.targets, content["targets"], strict=True):
        written["memory"] |= {"peak": target.memory.peak, "required": target.memory.required}
        written |= {"fits": target.fits, "would_fit": target.would_fit}
    content["probe"] = None if measured is None else asdict(measured)
    return content


def memory_table(made: "Plan") -> "Table":
    """Break the memory down by its use, a column for each device."""
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
    """Describe the rows and the pack that needs the most memory."""
    yield "", ""
    workload = made.workload
    steps = "" if workload.num_steps is None else f", {workload.num_steps:,} steps"
    if workload.num_rows is None:
        yield "data", f"not known{steps}; all packs are assumed to be full. {made.note}"
    else:
        tokens = f", {workload.num_tokens:,} tokens in total"
        yield "data", f"{workload.num_rows:,} rows{steps}{tokens}"
    yield (
        "heaviest pack",
        f"{len(workload.lengths)} rows with {sum(workload.lengths):,} tokens in total, "
        f"{sum(workload.learned):,} of them learned",
    )


def target_lines(made: "Plan") -> Lines:
    """State for each device whether the run fits, or what would make it fit."""
    for target in made.targets:
        free, needed = readable(target.capacity), readable(target.memory.required)
        label = "fits" if target.fits else "does not fit"
        yield label, f"{target.name}: {needed} needed, {free} free"
        yield from _pack_lines(target, made.workload.max_tokens)
        yield from _change_lines(target)


def _pack_lines(target: "Target", usual_tokens: int) -> Lines:
    """State how a GPU is used, and how long it takes, if that is known."""
    if target.fits and target.pack_tokens != usual_tokens:
        yield "", f"packs of up to {target.pack_tokens:,} tokens, with the same rows in a step"
    if target.fits and target.recomputes:
        yield "", "only if activations are recomputed, which the run then does"
    if target.note:
        yield "", target.note
    if (time := target.time) is not None:
        basis = f"{time.basis}: {time.source}" if time.source else FROM_PEAK
        pack = f"{time.pack_seconds:.3g} s for the heaviest pack"
        if time.run_seconds is None:
            yield "", f"{pack} ({basis})"
        else:
            yield "", f"about {duration(time.run_seconds)} there; {pack} ({basis})"


def _change_lines(target: "Target") -> Lines:
    for index, change in enumerate(target.changes):
        yield (
            ("" if index else "change"),
            f"{' '.join(change.overrides)}: {readable(change.required)}",
        )
    if target.changes and target.would_fit:
        yield "", "with this it fits" if len(target.changes) == 1 else "with all of these it fits"
    elif not target.fits:
        yield "", "and that is not enough: use a smaller model or a larger machine"


def time_lines(made: "Plan") -> Lines:
    """Estimate how long the run takes on this machine."""
    if made.pack_seconds is None:
        yield "time", "not measured, since the run does not fit here"
        return
    run = "not known without the data"
    if made.run_seconds is not None:
        run = f"about {duration(made.run_seconds)} here, without evaluation and saving"
    yield "time", f"{run}; {made.pack_seconds:.3g} s for the heaviest pack"


def probe_lines(made: "Plan", measured: "Probe") -> Lines:
    """Compare the measured memory with the estimate."""
    peak, took = made.targets[0].memory.peak, measured.peak_bytes
    estimate = f"{readable(peak)} estimated ({100 * (peak / took - 1):+.0f} %)"
    yield "probe", f"{readable(took)} measured, {estimate}"
    rate, tokens = measured.tokens_per_second, made.workload.num_tokens
    run = "" if tokens is None else f", so the run takes about {duration(tokens / rate)}"
    yield "", f"{rate:,.0f} tokens/s{run}"
