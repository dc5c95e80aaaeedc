"""The memory and time that `glmtune plan` foretells of a step, next to those of the step on a GPU.

    python -m benchmarks.gpu_plan [--small] [--only LoRA] [--json gpu_plan.json]

A ChatGLM3-6B with random weights in bfloat16 is made on the device and tuned as LoRA, QLoRA (NF4)
and with int8 layers, without and with recomputation, in packs of 2,048 and 8,192 tokens. Memory is
what tensors take, as torch counts it; what the CUDA context and the allocator take in addition is
given apart. Time is foretold twice: from the table of cards, and from one layer on this device, as
`plan` does for this machine. A configuration that fails is named below the table.

`--small` runs everything with a tiny model, on a CPU too, to try the script: its times say nothing.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from benchmarks.gpu import Bench, facts, make_model, size_of
from benchmarks.slices import rows_of
from glmtune import machine
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.data.packing import group_rows
from glmtune.errors import RecipeError
from glmtune.kernels import int8
from glmtune.kernels.half_precision import widen
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.methods import method
from glmtune.model.quantization import quantization_config, quantize_to_nf4
from glmtune.objective.next_token import next_token_loss
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.load_model import quantization_of
from glmtune.train.optimizer import make_optimizer
from glmtune.train.plan.cards import find_card
from glmtune.train.plan.shapes import MemoryTracker
from glmtune.train.plan.simulation import Simulator
from glmtune.train.plan.timing import describe_work, measure_seconds_per_token, seconds_on
from glmtune.train.plan.workload import Workload

METHODS: dict[str, list[str]] = {
    "LoRA": [],
    "QLoRA": ["adapter.method=qlora"],
    "int8": ["model.compute=int8"],
}
PACKS, SMALL_PACKS = (2048, 8192), (256, 512)
GIB = 2**30


@dataclass
class Point:
    """A configuration, foretold and measured.

    Attributes:
        name: of the configuration.
        tokens: of the pack.
        foretold_gib, measured_gib: of tensors, at the peak of a step.
        reserved_gib: what the allocator has taken from the GPU at that peak.
        by_card_ms: the time by the table of cards; None for an unknown card.
        by_layer_ms: the time by a layer on this device.
        measured_ms: the time of a step, without the first.
    """

    name: str
    tokens: int
    foretold_gib: float
    measured_gib: float
    reserved_gib: float | None
    by_card_ms: float | None
    by_layer_ms: float | None
    measured_ms: float

    def row(self) -> str:
        """A line of the table."""
        by_card, by_layer = (
            "-" if each is None else f"{each:,.0f} | {_off(each, self.measured_ms)}"
            for each in (self.by_card_ms, self.by_layer_ms)
        )
        return (
            f"| {self.name} | {self.tokens:,} | {self.foretold_gib:.2f} | {self.measured_gib:.2f} "
            f"| {_off(self.foretold_gib, self.measured_gib)} | {self.measured_ms:,.0f} "
            f"| {by_card if by_card != '-' else '- | -'} "
            f"| {by_layer if by_layer != '-' else '- | -'} |"
        )


HEADER = (
    "| configuration | tokens | foretold GiB | measured GiB | off | measured ms | by card, ms "
    "| off | by a layer, ms | off |\n| --- |" + " ---: |" * 9
)


def _off(foretold: float, measured: float) -> str:
    return f"{100 * (foretold / measured - 1):+.0f} %"


# ---- what is foretold and what is measured ------------------------------------------------------


def recipe_for(folder: Path, changes: Sequence[str]) -> Recipe:
    """LoRA r 8 on query_key_value over bfloat16 weights, and changes."""
    tree = {
        "model": {"name_or_path": str(folder), "dtype": "bfloat16"},
        "data": {"train": "rows.json"},
        "output": {"dir": "out"},
    }
    return build_recipe(tree, changes)


def pack_of(tokens: int) -> MicroBatch:
    """A pack of rows of up to 256 tokens, as training makes them."""
    rows = rows_of(2 + tokens // 32)
    groups = group_rows(range(len(rows)), [len(row.input_ids) for row in rows], tokens)
    return pack_examples(rows, max(groups, key=lambda g: sum(len(rows[i].input_ids) for i in g)))


def workload_of(pack: MicroBatch) -> Workload:
    """What `plan` knows of a pack."""
    assert pack.cu_seq_lens is not None
    lengths = pack.cu_seq_lens.diff().tolist()
    learned = [int((part >= 0).sum()) for part in pack.labels[0].split(lengths)]
    return Workload(tuple(lengths), tuple(learned), proof=lengths[0])


def foretold(
    bench: Bench, recipe: Recipe, pack: MicroBatch
) -> tuple[float, float | None, float | None]:
    """Foretell the bytes of tensors, and the seconds by the table and by a layer."""
    workload = workload_of(pack)
    parts = Simulator(recipe, bench.device).simulate(pack, None, workload.proof_row())
    num_bytes = parts.frozen + parts.trained + parts.gradients + parts.optimizer + parts.activations
    by_card = None
    if bench.device.type == "cuda":
        try:
            card = find_card(torch.cuda.get_device_name(bench.device))
        except RecipeError:
            card = None
        if card is not None:
            checkpointing = recipe.training.gradient_checkpointing
            work = describe_work(recipe, workload, recomputes=bool(checkpointing))
            by_card = seconds_on(card, recipe, work, sum(workload.lengths), 1)
    return num_bytes, by_card, _timed_by_a_layer(bench, recipe, workload)


def _timed_by_a_layer(bench: Bench, recipe: Recipe, workload: Workload) -> float | None:
    try:
        per_token = measure_seconds_per_token(recipe, workload, bench.device, seconds=0.3)
    except Exception as error:  # of a kernel that does not run here
        bench.left_out.append(f"a layer, {recipe.adapter.method}: {_first_line(error)}")
        return None
    return per_token * sum(workload.lengths)


def quantized(model: Any, recipe: Recipe) -> Any:
    """Quantize the linear layers of the model that was made, if the recipe asks for it."""
    quantization = quantization_of(recipe.adapter)
    if quantization is not None:
        packing = quantization_config(quantization, torch.bfloat16)
        quantize_to_nf4(model, packing, torch.bfloat16)
    if recipe.model.compute == "int8":
        int8.quantize(model, torch.bfloat16)
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    if on_cpu and torch.bfloat16 not in machine.fast_cpu_dtypes():
        widen(model)
    return model


def stepper(
    tuned: Any, recipe: Recipe, pack: MicroBatch, device: torch.device
) -> Callable[[], None]:
    """A step of one pack."""
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = make_optimizer(tuned, recipe.training)
    learned = int((pack.labels >= 0).sum())

    def step() -> None:
        loss = next_token_loss(tuned, pack.to(device)) / learned
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        torch.stack([loss.detach(), norm]).tolist()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(
    bench: Bench, tuned: Any, step: Callable[[], None]
) -> tuple[float, float | None, float]:
    """Measure the bytes of tensors at the peak, those that are reserved, and the seconds."""
    with without_cudnn():
        step()  # the optimizer has its state, kernels are compiled
        if bench.device.type != "cuda":
            tracker = MemoryTracker()
            states: Iterator[Any] = (p for p in (*tuned.parameters(), *tuned.buffers()))
            tracker.track(states)
            with tracker:
                step()
            return tracker.peak, None, bench.seconds(step)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(bench.seconds(step) for _ in range(3))
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), seconds


# ---- all of it ---------------------------------------------------------------------------------


def compare(
    bench: Bench, folder: Path, packs: Sequence[int], methods: Sequence[str]
) -> Iterator[Point]:
    """Compare all configurations of some methods; those that fail are noted."""
    for name in methods:
        changes = METHODS[name]
        model = None
        try:
            plain = recipe_for(folder, changes)
            model = quantized(make_model(bench), plain)
            model.set_attn_implementation("packed")
            tuned = method.attach(model, plain.adapter).train()
            for is_recomputed in (False, True):
                recipe = recipe_for(
                    folder, [*changes, f"training.gradient_checkpointing={is_recomputed}".lower()]
                )
                if is_recomputed:
                    tuned.activation_checkpointing_enable({"use_reentrant": False})
                for tokens in packs:
                    what = f"{name}{', recomputed' * is_recomputed}, packs of {tokens:,}"
                    yield from _compare_one(bench, what, recipe, tuned, pack_of(tokens))
            del tuned
        except Exception as error:  # one method must not hide the others
            bench.left_out.append(f"{name}: {_first_line(error)}")
        del model
        gc.collect()


def _compare_one(
    bench: Bench, what: str, recipe: Recipe, tuned: Any, pack: MicroBatch
) -> Iterator[Point]:
    try:
        taken, reserved, seconds = measured(
            bench, tuned, stepper(tuned, recipe, pack, bench.device)
        )
        num_bytes, by_card, by_layer = foretold(bench, recipe, pack)
    except Exception as error:  # memory, or a kernel
        bench.left_out.append(f"{what}: {_first_line(error)}")
        return
    finally:
        tuned.zero_grad()
        print(f"{time.monotonic() - bench.began:5.0f} s  {what}", file=sys.stderr)
    yield Point(
        what,
        pack.input_ids.numel(),
        round(num_bytes / GIB, 4),
        round(taken / GIB, 4),
        None if reserved is None else round(reserved / GIB, 2),
        None if by_card is None else round(1000 * by_card, 1),
        None if by_layer is None else round(1000 * by_layer, 1),
        round(1000 * seconds, 1),
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"


def outside_gib(bench: Bench) -> float | None:
    """GiB that the CUDA context takes: used on the GPU, and not by torch's allocator."""
    if bench.device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(bench.device)
    return round((total - free - torch.cuda.memory_reserved(bench.device)) / GIB, 3)


def write(bench: Bench, points: Sequence[Point], path: Path) -> dict[str, Any]:
    """Write what was found to a JSON file, and return it."""
    found = {
        **facts(bench, "packed"),
        "context_gib": outside_gib(bench),
        "points": [asdict(point) for point in points],
        "left_out": bench.left_out,
    }
    path.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--only", choices=list(METHODS), help="one method instead of all")
    parser.add_argument("--json", type=Path, default=Path("gpu_plan.json"), help="where to write")
    given = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not given.small:
        sys.exit(
            f"torch {torch.__version__} sees no CUDA GPU here, and this measures one. To try the "
            "script without: python -m benchmarks.gpu_plan --small"
        )
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    device = torch.device("cuda", torch.cuda.current_device()) if has_gpu else torch.device("cpu")
    bench = Bench(device, size_of(quick=True, small=given.small))
    torch.manual_seed(0)
    packs = SMALL_PACKS if given.small else PACKS
    methods = [given.only] if given.only else list(METHODS)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        bench.size.config.save_pretrained(folder)
        for point in compare(bench, Path(folder), packs, methods):
            points.append(point)
            write(bench, points, given.json)  # so far, in case that time runs out
    found = write(bench, points, given.json)
    print(f"{found['date']}, GPU: {found['gpu']}, context {found['context_gib']} GiB\n\n{HEADER}")
    for point in points:
        print(point.row())
    for line in bench.left_out:
        print(f"\nleft out: {line}")
    print(f"\nwritten to {given.json}")


if __name__ == "__main__":
    main()
