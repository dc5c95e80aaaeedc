"""`glmtune doctor`: diagnose this machine, or the log of a failed run."""

from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.options import AsJson
from glmtune.cli.printing import Lines, echo, print_json, print_lines
from glmtune.messages import translate
from glmtune.units import readable

if TYPE_CHECKING:
    from glmtune.inspect.doctor.advice import Advice
    from glmtune.inspect.doctor.machine import Machine


def doctor(
    log: Annotated[
        str | None,
        typer.Argument(help="A file with a traceback or log, or - for standard input."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Diagnose this machine, or the failed run that wrote a log.

    The log may come from other tools, and from the code in the original checkpoints.

    Example: python train.py 2>&1 | glmtune doctor -
    """
    if log is None:
        _examine_machine(as_json)
    else:
        _examine_log(log, as_json)


def _examine_log(name: str, as_json: bool) -> None:
    from dataclasses import asdict

    from glmtune.inspect.doctor.log import diagnose, is_error_line, last_error_line, read_log

    text = read_log(name)
    findings, last = diagnose(text), last_error_line(text)
    if as_json:
        print_json({"findings": [asdict(one) for one in findings], "last_error_line": last})
        return
    if not findings:
        echo("No known problem was found in this log.")
        what = translate("Its last error" if is_error_line(last) else "Its last line")
        typer.echo(f"{what}:  {last}" if last else translate("The log is empty."))
        return
    for finding in findings:
        place = translate(f"line {finding.line_number}")
        typer.secho(f"{place}: {finding.line[:200]}", bold=True)
        echo(f"  cause   {finding.cause}")
        echo(f"  remedy  {finding.remedy}")


def _examine_machine(as_json: bool) -> None:
    from dataclasses import asdict

    from glmtune.inspect.doctor.advice import advise
    from glmtune.inspect.doctor.machine import describe_machine

    machine = describe_machine()
    advice = advise(machine)
    if as_json:
        print_json({**asdict(machine), "advice": [asdict(one) for one in advice]})
    else:
        print_lines([*machine_lines(machine), *advice_lines(advice)], label_width=14)
    if any(one.stops for one in advice):
        raise typer.Exit(1)


def machine_lines(machine: "Machine") -> Lines:
    """Describe the machine."""
    yield "system", machine.system
    yield "CPU", f"{machine.cpu}, {machine.num_cores} cores"
    yield "", f"multiplies {', '.join(machine.native_dtypes) or 'unknown dtypes'} natively"
    total, free = readable(machine.memory_bytes), readable(machine.available_bytes)
    yield "memory", f"{total}, {free} free"
    for gpu in machine.gpus:
        half = "with bfloat16" if gpu.has_bfloat16 else "without bfloat16"
        total, free = readable(gpu.memory_bytes), readable(gpu.free_bytes)
        yield "GPU", f"{gpu.name}, {total}, {free} free, {half}"
    if not machine.gpus:
        yield "GPU", "none"
    for place, size in machine.disk_free_bytes.items():
        yield "disk", f"{readable(size)} free for the {place}"
    for version in machine.versions:
        wanted = f"  ({version.wanted})" if version.wanted else ""
        yield version.name, f"{version.found or 'not installed'}{wanted}"
    for model in machine.models:
        state = f", but {model.problem}" if model.problem else ""
        yield "in the cache", f"{model.name}, {readable(model.size_bytes)}{state}"
    if not machine.models:
        yield "in the cache", "no ChatGLM"
    for name, value in machine.environment.items():
        yield "environment", f"{name}={value}"


def advice_lines(advice: "list[Advice]") -> Lines:
    """List what will not work, and notes."""
    yield "", ""
    if not any(one.stops for one in advice):
        yield "Everything that is needed is installed.", ""
    for one in advice:
        yield ("will not work" if one.stops else "note"), one.problem
        yield "", one.remedy
