"""One training step by the arithmetic of the frozen layers on one GPU: 16 bits, int8, fp8, NF4.

    python -m benchmarks.gpu_compute [--small] [--json gpu_compute.json]

The model, the rows and the step are those of `benchmarks.gpu` (LoRA r 8 on query_key_value, packs
of 8,192 and of 2,048 tokens), each with weights of its own from the same seed. For each arithmetic:
tokens/s, the ratio to bfloat16, the peak of memory, and how near loss and gradient are to those of
bfloat16. Then the products alone at ChatGLM3's shapes, in both directions, and what quantizing and
transposing take. NF4 needs bitsandbytes. What fails, or for which no time is left after 50
seconds, is named below the table.

`--small` runs everything with a tiny model, on a CPU too, to try the script: its figures say
nothing.
"""

import argparse
import gc
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.figures import Figure, table
from benchmarks.gpu import LINEAR, Bench, facts, make_model, our_step, size_of
from benchmarks.slices import FFN, FUSED, HIDDEN, WHOLE, rows_of
from glmtune.data.batches import pack_examples
from glmtune.data.packing import group_rows
from glmtune.kernels import fp8, int8, scaled_linear
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.kernels.scaled_linear import FP8
from glmtune.methods import lora
from glmtune.model.quantization import Quantization, quantization_config, quantize_to_nf4
from glmtune.objective.next_token import next_token_loss
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import Example

PACKS = (8192, 2048)
TURNS = 3  # of a step, after one that warms up
BUDGET_SECONDS = 50
LAUNCHES = 20  # of a kernel between two waits
BF16 = torch.bfloat16
NAMES = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def to_nf4(model: Any, dtype: torch.dtype) -> None:
    """Quantize the linear layers by bitsandbytes, as `adapter.method=qlora` does."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("bitsandbytes is not installed")
    quantize_to_nf4(model, quantization_config(Quantization(), dtype), dtype)


QUANTIZE: dict[str, Callable[[Any, torch.dtype], None]] = {
    "bf16": lambda model, dtype: None,
    "fp8": fp8.quantize,
    "int8": int8.quantize,
    "nf4": to_nf4,
}


# ---- a step --------------------------------------------------------------------------------------


def gradient(tuned: Any, bench: Bench, rows: list[Example]) -> tuple[float, Tensor]:
    """The loss of a pack per token and the gradient of the adapter, on the CPU."""
    lengths = [len(row.input_ids) for row in rows]
    first = next(iter(group_rows(range(len(rows)), lengths, min(PACKS))))
    loss = next_token_loss(tuned, pack_examples(rows, first).to(bench.device))
    loss.backward()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    found = torch.cat([p.grad.float().flatten().cpu() for p in trained if p.grad is not None])
    for parameter in trained:
        parameter.grad = None
    return float(loss.detach()) / sum(len(rows[index].input_ids) for index in first), found


def measure_step(bench: Bench, name: str, rows: list[Example]) -> dict[str, Any]:
    """Tokens/s by packs, and loss and gradient of one pack; nothing of what failed."""
    found: dict[str, Any] = {"tokens_per_second": {}}
    torch.manual_seed(0)
    model = make_model(bench)
    for part, tensor in model.named_parameters():
        if "layernorm" in part:  # or layers would add nothing to what goes around them
            tensor.data.fill_(1.0)
    with bench.point(f"{name}, quantizing"):
        QUANTIZE[name](model, BF16)
        model.set_attn_implementation("packed")
        torch.manual_seed(0)
        tuned = lora.attach(model, LoraSection(r=8, target_modules=LINEAR[:1])).train()
        with without_cudnn():
            found["loss"], found["gradient"] = gradient(tuned, bench, rows)
            for pack_tokens in PACKS:
                step = partial(our_step(tuned, bench.device, pack_tokens), rows)
                taken = bench.median(f"{name}, packs of {pack_tokens:,}", step)
                if taken:
                    tokens = sum(len(row.input_ids) for row in rows)
                    found["tokens_per_second"][pack_tokens] = tokens / taken
    return found


def compare_steps(bench: Bench) -> dict[str, Any]:
    """Measure every arithmetic, and compare it with bfloat16."""
    rows, results = rows_of(bench.size.rows), {}
    reference: dict[str, Any] = {}
    for name in QUANTIZE:
        if not bench.has_time(name):
            continue
        found = measure_step(bench, name, rows)
        reference = reference or found
        for pack_tokens, speed in found["tokens_per_second"].items():
            bench.figures.append(
                Figure(
                    f"{name} step", f"packs of {pack_tokens:,}", "tokens/s", speed,
                    reference["tokens_per_second"].get(pack_tokens) if name != "bf16" else None,
                    "bf16", goal=1.25 if name in ("int8", "fp8") else None,
                )
            )  # fmt: skip
        own = found.pop("gradient", None)
        if own is not None and "gradient" not in reference:
            reference["kept"] = own
        if own is not None:
            found["cosine_of_gradient_with_bf16"] = float(
                torch.cosine_similarity(own.double(), reference["kept"].double(), dim=0)
            )
        results[name] = found
        gc.collect()
    reference.pop("kept", None)
    return results


# ---- products ------------------------------------------------------------------------------------


def seconds_of(bench: Bench, work: Callable[[], object]) -> float:
    """Time one launch of a kernel, of many in a row."""
    launches = LAUNCHES if bench.device.type == "cuda" else 1
    for _ in range(min(3, launches)):
        work()

    def many() -> None:
        for _ in range(launches):
            work()

    return min(bench.seconds(many) for _ in range(3)) / launches


def product_rates(bench: Bench) -> dict[str, dict[str, float]]:
    """10^12 operations/s of a product and microseconds of what surrounds it, by shape and rows."""
    is_whole = bench.size.layers == WHOLE
    shapes = ((FUSED, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN))
    found: dict[str, dict[str, float]] = {}
    for number in (2048, 8192) if is_whole else (32,):
        for name, shape in zip(NAMES, shapes, strict=True):
            out, width = shape if is_whole else (shape[0] // 64, shape[1] // 64)
            for direction, sizes in (("forward", (out, width)), ("gradient", (width, out))):
                label = f"{name}, {direction}, {number:,} rows"
                if bench.has_time(label):
                    with bench.point(label):
                        found[label] = product_rate(bench, number, *sizes, direction == "gradient")
    return found


def product_rate(
    bench: Bench, number: int, columns: int, inner: int, is_gradient: bool
) -> dict[str, float]:
    """The rates of one product, (number, inner) times (inner, columns)."""
    columns, inner = (-(-each // 16) * 16 for each in (columns, inner))
    x = torch.randn(number, inner, device=bench.device).to(BF16)
    weight = torch.randn(columns, inner, device=bench.device).to(BF16)
    stored = weight.T.contiguous() if is_gradient else weight  # as a layer holds it
    scale = torch.rand(inner, device=bench.device) if is_gradient else None
    column_scale = None if is_gradient else torch.rand(columns, device=bench.device)
    of_product = 2 * number * columns * inner / 1e12
    found = {}
    other = stored if is_gradient else stored.T
    found["bf16"] = of_product / seconds_of(bench, lambda: x @ other)
    for name, dtype in (("int8", torch.int8), ("fp8", FP8)):
        is_mixed = dtype == torch.int8 and not is_gradient
        rows, row_scale = scaled_linear.quantize(x, scale, is_mixed, dtype)
        of_weight, _ = scaled_linear.quantize_by_torch(weight, None, False, dtype)
        product = (rows, row_scale, of_weight, column_scale, None, BF16)
        found[name] = of_product / seconds_of(bench, partial(scaled_linear.multiply, *product))
        quantizing = partial(scaled_linear.quantize, x, scale, is_mixed, dtype)
        found[f"{name}, quantizing, µs"] = 1e6 * seconds_of(bench, quantizing)
    if is_gradient:
        of_bytes = stored.to(torch.int8)
        turning = partial(scaled_linear.transpose, of_bytes)
        found["transposing, µs"] = 1e6 * seconds_of(bench, turning)
    return {key: round(value, 1) for key, value in found.items()}


def errors_of_layers(bench: Bench) -> dict[str, list[float]]:
    """Errors of y and dx of layers of 8 bits, as a share of those of float64."""
    is_whole = bench.size.layers == WHOLE
    shapes = ((FUSED, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN))
    found: dict[str, list[float]] = {}
    for kind in (int8.Int8Linear, fp8.Fp8Linear):
        for name, shape in zip(NAMES, shapes, strict=True):
            out, width = shape if is_whole else (shape[0] // 64 * 16, shape[1] // 64 * 16)
            with bench.point(f"{kind.__name__}, {name}, error"):
                linear = torch.nn.Linear(width, out, device=bench.device, dtype=BF16)
                x = torch.randn(300, width, device=bench.device, dtype=BF16, requires_grad=True)
                dy = torch.randn(300, out, device=bench.device, dtype=BF16)
                y = kind(linear)(x)
                (dx,) = torch.autograd.grad(y, x, dy)
                weight = linear.weight.detach().double()
                expected = x.detach().double() @ weight.T + linear.bias.detach().double()
                pairs = ((y.detach(), expected), (dx, dy.double() @ weight))
                found[f"{kind.__name__}, {name}"] = [
                    round(float((each.double() - true).norm() / true.norm()), 4)
                    for each, true in pairs
                ]
    return found


# ---- the report ----------------------------------------------------------------------------------


def measure(bench: Bench) -> dict[str, Any]:
    """Measure everything, and return what goes into the JSON file."""
    errors = errors_of_layers(bench)
    steps, products = compare_steps(bench), product_rates(bench)
    return {
        **facts(bench, "packed"),
        "why_not": {
            "int8 kernels": scaled_linear.why_no_kernels(bench.device, torch.int8),
            "fp8 kernels": scaled_linear.why_no_kernels(bench.device, FP8),
            "fp8 products": scaled_linear.why_no_fp8(bench.device),
        },
        "errors_of_layers": errors,
        "steps": steps,
        "products": products,
        "tiles": _tiles(),
        "peak_gib": bench.peaks,
        "figures": [asdict(figure) for figure in bench.figures],
        "left_out": bench.left_out,
    }


def _tiles() -> dict[str, str]:
    """The tiles that were the fastest, by shape and order of magnitude of rows."""
    if importlib.util.find_spec("triton") is None:
        return {}
    from glmtune.kernels import triton_eight_bits

    chosen = triton_eight_bits.chosen_tiles()
    return {f"{columns} x {inner}, {bits} bits": str(t) for (columns, inner, bits), t in chosen}


def show(bench: Bench, found: dict[str, Any]) -> None:
    """Print what was found."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{found['date']}, GPU: {found['gpu']}, {versions}\n")
    if found["is_small"]:
        print("A tiny model was measured (--small), so these figures say nothing.\n")
    print(table(bench.figures))
    print("\n| | loss | cosine of the gradient with bf16's |\n| --- | --- | --- |")
    for name, step in found["steps"].items():
        if "loss" in step:
            print(f"| {name} | {step['loss']:.5g} | {step['cosine_of_gradient_with_bf16']:.6f} |")
    for name, peak in found["peak_gib"].items():
        if "packs of" in name:
            print(f"\npeak, {name}: {peak} GiB")
    print("\nerror of a layer and of its gradient:")
    for name, errors in found["errors_of_layers"].items():
        print(f"  {name}: {errors}")
    print("\nproducts, 10^12 operations/s:")
    for name, rates in found["products"].items():
        print(f"  {name}: {', '.join(f'{key} {value:,}' for key, value in rates.items())}")
    for name, why in found["why_not"].items():
        if why:
            print(f"\nno {name}: {why}")
    for line in bench.left_out:
        print(f"\nleft out: {line}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the tables, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument(
        "--json", type=Path, default=Path("gpu_compute.json"), help="where to write"
    )
    given = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not given.small:
        sys.exit(
            f"torch {torch.__version__} sees no CUDA GPU here, and this measures one. To try the "
            "script without, with figures that say nothing: "
            "python -m benchmarks.gpu_compute --small"
        )
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    device = torch.device("cuda", torch.cuda.current_device()) if has_gpu else torch.device("cpu")
    size = replace(
        size_of(quick=True, small=given.small), turns=TURNS, budget_seconds=BUDGET_SECONDS
    )
    bench = Bench(device, size)
    found = measure(bench)
    given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    show(bench, found)
    print(f"\nwritten to {given.json}")


if __name__ == "__main__":
    main()
