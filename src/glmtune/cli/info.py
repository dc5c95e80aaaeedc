"""`glmtune info`: describe a model or an adapter without loading its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.options import AsJson, ModelArgument
from glmtune.cli.printing import Lines, echo, print_json, print_lines, print_wide
from glmtune.errors import CheckpointError
from glmtune.gc_pause import loading
from glmtune.units import readable

if TYPE_CHECKING:
    from rich.table import Table

    from glmtune.inspect.adapter import AdapterFacts
    from glmtune.inspect.checkpoint import ModelFacts, TokenizerFacts

CACHE_TOKENS = 1024  # the size of the cache is given for this many tokens


def info(
    model: ModelArgument,
    lora_r: Annotated[
        int, typer.Option("--lora-r", min=1, help="Rank of the LoRA adapter to estimate.")
    ] = 8,
    target_modules: Annotated[
        str | None,
        typer.Option(help="Layers that it adapts, separated by commas; default: peft's choice."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every file, and compare it with its checksum."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Describe a model or an adapter; no weights are loaded.

    Example: glmtune info ./chatglm3-6b --lora-r 16 --target-modules query_key_value,dense
    """
    from dataclasses import asdict

    with loading():
        from glmtune.inspect.adapter import describe_adapter, is_adapter

    if verify:
        compare_files(model)
        return
    facts: AdapterFacts | ModelFacts
    if is_adapter(Path(model)):
        facts = describe_adapter(Path(model))
        table, lines = layer_table(facts), adapter_lines(facts)
    else:
        with loading():
            from glmtune.inspect.checkpoint import describe_model

        facts = describe_model(model, lora_r=lora_r, target_modules=_split(target_modules))
        table, lines = parameter_table(facts), model_lines(facts)
    if as_json:
        print_json(asdict(facts))
        return
    print_wide(table)
    print_lines(lines, label_width=12)


def compare_files(model: str) -> None:
    """Read every byte of a folder's files, and compare them with their checksums.

    Raises:
        CheckpointError: the folder records no checksums, or a file is not what was written.
    """
    with loading():
        from glmtune.model import card
        from glmtune.model.fingerprint import folder_of

    folder = folder_of(model)  # of a hub id the cached one
    if folder is None:
        raise CheckpointError(
            f"{model}: there is no such folder here. --verify reads a folder that glmtune wrote, "
            "or one that was downloaded from the Hugging Face Hub."
        )
    if not (number := card.verify(folder, whole=True)):
        raise CheckpointError(
            f"{folder}: there is nothing to compare: it has no {card.CARD} that lists checksums, "
            "and no record of a download. Folders made by other tools, or by earlier releases, "
            "have none."
        )
    echo(f"{folder}: {number} files are what was written or downloaded, to the last byte")


def _split(names: str | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(name.strip() for name in names.split(",") if name.strip())


def parameter_table(facts: "ModelFacts") -> "Table":
    """List the parameters; those that differ only in their layer share a line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("parameter", overflow="fold")
    for header in ("shape", "stored as", "tensors", "numbers"):
        table.add_column(header, justify="right", no_wrap=True)
    for group in facts.groups:
        table.add_row(
            group.name,
            " x ".join(map(str, group.shape)),
            group.dtype or "-",
            str(group.count),
            f"{group.numel:,}",
        )
    return table


def model_lines(facts: "ModelFacts") -> Lines:
    """Describe a model besides its parameters."""
    lora = facts.lora
    yield "", ""
    yield "model", f"{facts.name}: {facts.kind}"
    yield "parameters", f"{facts.num_tensors} tensors, {facts.numel:,} numbers"
    if facts.buffers:
        yield "also stored", ", ".join(facts.buffers)
    if facts.unexpected:
        some = ", ".join(facts.unexpected[:3])
        yield "unexpected", f"{len(facts.unexpected)} stored tensors that are not used: {some}"
    if missing := sum(group.count for group in facts.groups if group.dtype == "missing"):
        yield "missing", f"{missing} tensors are not in the files; this folder cannot be loaded"
    sizes = (f"{dtype} {readable(size)}" for dtype, size in facts.memory_bytes.items())
    yield "memory", ", ".join(sizes)
    yield "", "int8 and 4 bit apply to the matrices of the layers; the rest stays in 16 bit"
    cache = facts.cache_bytes_per_token * CACHE_TOKENS
    yield "", f"and in chat {readable(cache)} per {CACHE_TOKENS:,} tokens, in 16 bit"
    context = "unknown" if facts.context_length is None else f"{facts.context_length:,} tokens"
    rope = "" if facts.rope_ratio is None else f", rope_ratio {facts.rope_ratio:g}"
    yield "context", context + rope
    yield "LoRA", f"r {lora.r} on {', '.join(lora.target_modules)}"
    share = 100 * lora.trainable / lora.total
    yield "", f"trains {lora.trainable:,} of {lora.total:,} numbers ({share:.4f} %)"
    yield "", f"adapter file about {readable(lora.file_bytes)} in float32"
    if facts.tokenizer is None:
        yield "tokenizer", facts.tokenizer_problem
    else:
        yield from tokenizer_lines(facts.tokenizer)


def tokenizer_lines(tokenizer: "TokenizerFacts") -> Lines:
    """Describe a tokenizer and how it builds prompts."""
    yield "tokenizer", f"{tokenizer.kind}, {tokenizer.size:,} ids"
    yield "special ids", ", ".join(f"{token} {i}" for token, i in tokenizer.special_ids.items())
    if tokenizer.template is None:
        yield "template", tokenizer.problem
        return
    named = {index: token for token, index in tokenizer.special_ids.items()}
    stops = (f"{index} {named.get(index, '')}".strip() for index in tokenizer.stop_ids)
    yield "stops at", ", ".join(stops)
    described = ", ".join(f"{key} {value}" for key, value in tokenizer.template.items())
    yield "template", f"{described}, fingerprint {tokenizer.fingerprint[:12]}"


def layer_table(facts: "AdapterFacts") -> "Table":
    """List the layers of an adapter, and how far each changes its output."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("adapted layer", overflow="fold")
    table.add_column("norm of B", justify="right", no_wrap=True)
    for layer, norm in facts.norms.items():
        table.add_row(layer, f"{norm:.4g}" + ("  (dead)" if layer in facts.dead else ""))
    return table


def adapter_lines(facts: "AdapterFacts") -> Lines:
    """Describe an adapter besides its layers."""
    yield "", ""
    yield "adapter", f"{facts.folder}: {facts.method}"
    if facts.r is not None and facts.lora_alpha is not None:
        scale = f"r {facts.r}, lora_alpha {facts.lora_alpha:g}"
        yield "update", f"{scale}, on {', '.join(facts.target_modules)}"
    yield "base", facts.base or "unknown"
    dtypes = ", ".join(facts.dtypes)
    size = readable(facts.file_bytes)
    yield "weights", f"{facts.num_tensors} tensors, {facts.numel:,} numbers, {dtypes}, {size}"
    if facts.template is None:
        yield "template", "unknown; the folder has no glmtune.json, so another tool made it"
    else:
        described = ", ".join(f"{key} {value}" for key, value in facts.template.items())
        yield "template", f"{described}, fingerprint {facts.fingerprint[:12]}"
        yield "made by", f"glmtune {facts.glmtune_version}"
    if facts.change:
        yield "edited", facts.change
    if facts.dead:
        yield "alive", f"no: {len(facts.dead)} of {len(facts.norms)} layers change nothing"
    elif facts.norms:
        yield "alive", f"yes, all {len(facts.norms)} layers"
