"""Training and writing on one GPU, next to transformers, peft and TRL and to the card's own limits.

    python -m benchmarks.gpu [--quick] [--small] [--json gpu.json]

One ChatGLM3-6B with random weights in bfloat16 is made on the device; nothing is downloaded, and
glmtune need not be installed. In turn, on the same rows and targets, one optimizer step by

    ours      packs of 512, 2,048 and 8,192 tokens
    Trainer   transformers' Trainer and peft, padded batches of 2, 8 and 32
    TRL       SFTTrainer, packs of 8,192 ("bfd"), where trl is installed: with flash attention if
              flash_attn is installed too; otherwise its rows see each other, and the table says so

and greedy writing of 1, 32 and 128 rows by ours and by transformers' `generate`. Every turn is
timed after one that warms up. Floors: for a step the products that cannot be left out, attention's
own included, at the rate that this card reaches with products of ChatGLM3's shapes; for writing the
time to read the weights once per token, at the rate of a copy. First the attention that this card
uses is compared with the loop over examples. A peer that fails, or for which no time is left (4
minutes with --quick, 10 without), is named below the table.

`--small` runs everything with a tiny model, on a CPU too, to try the script: its figures say
nothing.
"""

import argparse
import importlib.util
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from tests.padding import pad_examples

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from benchmarks.checkpoint import config_of
from benchmarks.figures import Figure, table
from benchmarks.slices import FFN, FUSED, HIDDEN, WHOLE, row_of, rows_of, work_per_token
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.data.packing import group_rows
from glmtune.kernels import varlen_attention
from glmtune.kernels.bucketed_attention import attend_by_buckets
from glmtune.kernels.pack_layout import PackLayout
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.methods import lora
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.objective.next_token import count_learned_tokens, next_token_loss
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.sections import TrainingSection
from glmtune.template.base import Example
from glmtune.train.optimizer import make_optimizer
from glmtune.use.generate import Request, Sampling, generate

LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
OPTIMIZER = TrainingSection(learning_rate=1e-4)
GREEDY = Sampling(temperature=0)
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    config: ChatGLMConfig
    layers: int
    rows: int
    packs: tuple[int, ...]
    batches: tuple[int, ...]
    long_rows: tuple[int, ...]  # their length; as many as make 16,384 tokens
    written_rows: tuple[int, ...]
    new_tokens: int
    turns: int
    budget_seconds: int


def size_of(*, quick: bool, small: bool) -> Size:
    """Choose the model and the amount of work."""
    budget = 240 if quick else 600
    if small:
        config = ChatGLMConfig(
            num_layers=2, hidden_size=64, ffn_hidden_size=96, kv_channels=16,
            num_attention_heads=4, multi_query_attention=True, multi_query_group_num=2,
            add_qkv_bias=True, padded_vocab_size=65024,
        )  # fmt: skip
        return Size(config, 2, 2, (512,), (2,), () if quick else (64,), (1, 2), 3, 1, budget)
    config = config_of(WHOLE)
    if quick:
        return Size(config, WHOLE, 64, (512, 8192), (8, 32), (), (1, 32), 32, 1, budget)
    return Size(
        config, WHOLE, 64, (512, 2048, 8192), (2, 8, 32), (2048, 8192), (1, 32, 128), 64, 3, budget
    )


@dataclass
class Bench:
    """A run of the benchmark: where, how much, and what it has found.

    Attributes:
        device: of the model.
        size: of the work.
        figures: lines of the table.
        left_out: what was not measured, and why.
        peaks: the most memory of each point, in GiB.
    """

    device: torch.device
    size: Size
    began: float = field(default_factory=time.monotonic)
    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)

    def seconds(self, work: Callable[[], object]) -> float:
        """Time one call, up to its last kernel, unless it returns the seconds that count."""
        self.wait()
        began = time.perf_counter()
        counted = work()
        self.wait()
        return counted if isinstance(counted, float) else time.perf_counter() - began

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def point(self, name: str) -> Iterator[None]:
        """Note the memory of a point; one that fails is left out, whatever the reason."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
        except Exception as error:  # of a peer, whose errors are not known
            self.left_out.append(f"{name}: {type(error).__name__}: {str(error).split(chr(10))[0]}")
            return
        finally:
            print(f"{time.monotonic() - self.began:5.0f} s  {name}", file=sys.stderr)
        if self.device.type == "cuda":
            self.peaks[name] = round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def has_time(self, name: str) -> bool:
        """Whether there is time for another point."""
        if time.monotonic() - self.began < self.size.budget_seconds:
            return True
        self.left_out.append(f"{name}: no time was left")
        return False

    def median(self, name: str, work: Callable[[], object]) -> float | None:
        """Time a point after a warm-up; None where it was left out.

        Args:
            name: of the point.
            work: is timed, unless it returns the seconds that count.
        """
        taken: list[float] = []
        if self.has_time(name):
            with self.point(name):
                work()
                for _ in range(self.size.turns):
                    if not taken or self.has_time(f"{name}, a further turn"):
                        taken.append(self.seconds(work))
        return statistics.median(taken) if taken else None


# ---- the limits of the card --------------------------------------------------------------------


def product_rate(bench: Bench, rows: int) -> float:
    """10^9 operations/s of the products of a layer, forward and input gradient."""
    hidden, fused, ffn = HIDDEN, FUSED, 2 * FFN
    if bench.size.layers != WHOLE:
        hidden, fused, ffn, rows = 64, 96, 192, 64
    shapes = ((fused, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn // 2))
    weights = [torch.randn(s, device=bench.device).bfloat16() for s in shapes]
    inputs = [torch.randn(rows, s[1], device=bench.device).bfloat16() for s in shapes]
    of_outputs = [torch.randn(rows, s[0], device=bench.device).bfloat16() for s in shapes]

    def work() -> None:
        for weight, x, dy in zip(weights, inputs, of_outputs, strict=True):
            x @ weight.T, dy @ weight

    times = [bench.seconds(work) for _ in range(12)][2:]
    operations = sum(4 * rows * weight.numel() for weight in weights)
    return operations / statistics.median(times) / 1e9


def attention_per_token(rows: Sequence[Example]) -> float:
    """Operations of attention's own products, per token: two forward and four backward.

    Only scores of earlier tokens count, which is half of each product.
    """
    squares = sum(len(row.input_ids) ** 2 for row in rows)
    return 6 * WHOLE * HIDDEN * squares / sum(len(row.input_ids) for row in rows)


def copied_bytes_per_second(bench: Bench) -> float:
    """Bytes that a copy reads and writes in a second."""
    numel = 2**29 if bench.size.layers == WHOLE else 2**20
    source = torch.ones(numel, device=bench.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    times = [bench.seconds(lambda: target.copy_(source)) for _ in range(12)][2:]
    return 2 * source.nbytes / statistics.median(times)


def check_attention(bench: Bench) -> str:
    """Compare the attention of this device with plain attention of each example in float32.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    lengths, dtype = [5, 130, 1, 64, 300], torch.bfloat16
    shape = (1, 4, sum(lengths), 64)
    query, key, value = (torch.randn(shape, device=bench.device) for _ in range(3))
    key, value = key[:, :2], value[:, :2]
    parts = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    alone = [attend(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in parts]
    expected = torch.cat(alone, dim=2).transpose(1, 2)
    query, key, value = (each.to(dtype) for each in (query, key, value))
    layout = PackLayout(lengths)
    outputs = {"buckets": attend_by_buckets(query, key, value, layout, scaling=None)}
    if varlen_attention.works(bench.device, dtype, shape[-1]):
        outputs["varlen"] = varlen_attention.attend_by_varlen(
            query, key, value, layout, scaling=None
        )
    for name, output in outputs.items():
        assert (output.float() - expected).abs().max() < 0.03, f"{name} gives another result"
    return list(outputs)[-1]


class Stopwatch(transformers.TrainerCallback):
    """Times one step of a Trainer, without what comes before and after its loop."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.seconds = bench, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.bench.wait()
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.bench.wait()
        self.seconds = time.perf_counter() - self.began


# ---- a training step ---------------------------------------------------------------------------


def our_step(tuned: Any, device: torch.device, pack_tokens: int) -> Callable[[list[Example]], None]:
    """The step of `glmtune train` with packs of so many tokens.

    Packs are made before the first turn: a run makes those of the next step during a step, and
    the peers' batches are not timed either.
    """
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = make_optimizer(tuned, OPTIMIZER)
    made: dict[int, list[MicroBatch]] = {}

    def step(rows: list[Example]) -> None:
        if id(rows) not in made:
            groups = group_rows(range(len(rows)), [len(r.input_ids) for r in rows], pack_tokens)
            made[id(rows)] = [pack_examples(rows, group) for group in groups]
        packs = made[id(rows)]
        learned = sum(count_learned_tokens(pack.labels) for pack in packs)
        losses = []
        for pack in packs:
            loss = next_token_loss(tuned, pack.to(device))
            (loss / learned).backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        values = torch.stack([*losses, norm]).tolist()
        assert all(value == value for value in values), "the loss is not a number"  # noqa: PLR0124
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainer_settings(device: torch.device, batch_size: int, batches: int, folder: str) -> Any:
    """One optimizer step, and nothing else."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": batches,
        "max_steps": 1,
        "learning_rate": 1e-4,
        "use_cpu": device.type == "cpu",
        "bf16": False,  # autocast; the weights are bfloat16 already
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right."""
    part = pad_examples([Example(row["input_ids"], row["labels"]) for row in rows], 0)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(part.input_ids.shape[1]) < lengths[:, None]
    return {"input_ids": part.input_ids, "labels": part.labels, "attention_mask": mask.long()}


def trainer_step(tuned: Any, bench: Bench, size: int) -> Callable[[list[Example]], float]:
    """The step of transformers' Trainer on padded batches."""

    def step(rows: list[Example]) -> float:
        watch = Stopwatch(bench)
        with tempfile.TemporaryDirectory() as folder:
            settings = trainer_settings(bench.device, size, -(-len(rows) // size), folder)
            trainer = transformers.Trainer(
                model=tuned,
                args=transformers.TrainingArguments(**settings),
                train_dataset=[{"input_ids": r.input_ids, "labels": r.labels} for r in rows],
                data_collator=collate,
                callbacks=[watch],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return watch.seconds

    return step


def trl_step(tuned: Any, bench: Bench, pack_tokens: int) -> Callable[[list[Example]], float]:
    """The step of TRL's SFTTrainer on its own packs."""
    import datasets
    import trl
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>")),
        unk_token="<unk>",
        pad_token="<unk>",
        eos_token="<eos>",
    )

    def step(rows: list[Example]) -> float:
        watch = Stopwatch(bench)
        columns = {name: [getattr(r, name) for r in rows] for name in ("input_ids", "labels")}
        packs = trl.pack_dataset(datasets.Dataset.from_dict(columns), pack_tokens, "bfd")
        with tempfile.TemporaryDirectory() as folder:
            trainer = trl.SFTTrainer(
                model=tuned,
                args=trl.SFTConfig(
                    **trainer_settings(bench.device, 1, len(packs), folder),
                    packing=True,
                    max_length=pack_tokens,
                    packing_strategy="bfd",
                    dataset_kwargs={"skip_prepare_dataset": True},
                ),
                train_dataset=packs,
                processing_class=words,
                callbacks=[watch],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return watch.seconds

    return step


def compare_steps(
    bench: Bench, model: Any, what: str, rows: list[Example], targets: Sequence[str], rank: int
) -> None:
    """Let every pipeline learn the same rows, each with an adapter of its own."""
    tokens, longest = sum(len(r.input_ids) for r in rows), max(len(r.input_ids) for r in rows)
    rate = max(product_rate(bench, n) for n in (2048, 8192))
    work = work_per_token(WHOLE) + attention_per_token(rows)
    floor = rate * 1e9 / work if bench.size.layers == WHOLE else None
    ours: dict[str, float] = {}
    model.set_attn_implementation("packed")
    tuned = lora.attach(model, LoraSection(r=rank, target_modules=tuple(targets)))
    for pack_tokens in bench.size.packs:
        if pack_tokens >= longest:
            name = f"{what}, ours, packs of {pack_tokens:,}"
            step = our_step(tuned.train(), bench.device, pack_tokens)
            with without_cudnn():
                taken = bench.median(name, partial(step, rows))
            if taken:
                ours[f"packs of {pack_tokens:,}"] = tokens / taken
    model = tuned.unload()
    peers = step_peers(bench, model, what, rows, targets, rank)
    best = max(ours.values(), default=None)
    for name, speed in ours.items():
        bench.figures.append(Figure("step", f"{what}, {name}", "tokens/s", speed, floor=floor))
    for name, speed in peers.items():
        if best is not None:
            goal = 1.5 if name.startswith("TRL") else 2.5
            bench.figures.append(
                Figure("step", f"{what}, our best", "tokens/s", best, speed, name, floor, goal)
            )


def step_peers(
    bench: Bench, model: Any, what: str, rows: list[Example], targets: Sequence[str], rank: int
) -> dict[str, float]:
    """Measure Trainer and TRL: tokens/s by name."""
    settings: Any = {"r": rank, "lora_alpha": 4 * rank, "task_type": "CAUSAL_LM"}
    model.set_attn_implementation("sdpa")
    model.config.use_cache = False
    tuned: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=[*targets], **settings))
    tokens, found = sum(len(r.input_ids) for r in rows), {}
    steps: dict[str, Callable[[], Callable[[list[Example]], float]]] = {
        f"Trainer, padded batches of {size}": partial(trainer_step, tuned, bench, size)
        for size in bench.size.batches
    }
    packs = max(bench.size.packs)
    if importlib.util.find_spec("trl") is None:
        bench.left_out.append("TRL: it is not installed")
    else:
        kept_apart = importlib.util.find_spec("flash_attn") is not None
        how = "flash attention" if kept_apart else "sdpa, so rows see each other"
        steps[f"TRL, packs of {packs:,}, {how}"] = partial(trl_step, tuned, bench, packs)
    for name, make in steps.items():
        if name.endswith("flash attention"):
            model.set_attn_implementation("flash_attention_2")
        taken = bench.median(f"{what}, {name}", lambda make=make: make()(rows))  # type: ignore[misc]
        if taken:
            found[name] = tokens / taken
    tuned.unload()
    model.config.use_cache = True
    return found


# ---- writing -----------------------------------------------------------------------------------


def compare_writing(bench: Bench, model: Any) -> None:
    """Write greedily by ours and by transformers, for 1 row and for many."""
    model.eval()
    embedding = model.get_input_embeddings().weight
    num_bytes = sum(p.nbytes for p in model.parameters()) - embedding.nbytes
    reads = copied_bytes_per_second(bench) / num_bytes
    for rows in bench.size.written_rows:
        prompts = [row_of(PROMPT_TOKENS, index / 1000).input_ids for index in range(rows)]
        number = rows * bench.size.new_tokens
        ours = bench.median(f"{rows} rows written by ours", partial(write, bench, model, prompts))
        theirs = bench.median(
            f"{rows} rows written by transformers",
            partial(write_by_transformers, bench, model, prompts),
        )
        if ours:
            bench.figures.append(
                Figure(
                    "writing", f"{rows} rows at once", "tokens/s", number / ours,
                    number / theirs if theirs else None, "transformers", floor=rows * reads,
                )
            )  # fmt: skip


def write(bench: Bench, model: Any, prompts: list[list[int]]) -> None:
    """Continue prompts by our own `generate`."""
    model.set_attn_implementation("packed")
    requests = [Request(prompt, bench.size.new_tokens) for prompt in prompts]
    written = list(
        generate(model, requests, stop_ids=(), sampling=GREEDY, batch_size=len(requests))
    )
    assert sum(len(each.ids) for each in written) == len(prompts) * bench.size.new_tokens


def write_by_transformers(bench: Bench, model: Any, prompts: list[list[int]]) -> None:
    """Continue prompts by transformers' `generate`."""
    model.set_attn_implementation("sdpa")
    ids = torch.tensor(prompts, device=bench.device)
    number = bench.size.new_tokens
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=number, min_new_tokens=number,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip


# ---- the report --------------------------------------------------------------------------------


def make_model(bench: Bench) -> Any:
    """Make the model on the device, with random weights in bfloat16."""
    with torch.device("meta"):
        model: Any = ChatGLMForConditionalGeneration(bench.size.config)
    model = model.to(torch.bfloat16).to_empty(device=bench.device).requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.uniform_(-0.02, 0.02)
    return model


def facts(bench: Bench, attention: str) -> dict[str, Any]:
    """Describe the machine."""
    names = ("torch", "transformers", "peft", "accelerate", "trl", "triton", "flash_attn")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    gpu = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "none"
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": found,
        "attention": attention,
        "is_small": bench.size.layers != WHOLE,
        "seconds": round(time.monotonic() - bench.began),
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Measure everything, in order of interest, and return what goes into the JSON file."""
    torch.manual_seed(0)
    attention = check_attention(bench)
    model = make_model(bench)
    rows = rows_of(bench.size.rows)
    compare_steps(bench, model, "short rows, r 8 on query_key_value", rows, LINEAR[:1], 8)
    compare_writing(bench, model)
    if bench.size.turns > 1 or bench.size.long_rows:
        compare_steps(bench, model, "short rows, r 16 on all", rows, LINEAR, 16)
    for length in bench.size.long_rows:
        number = max(1, 16_384 // length) if bench.size.layers == WHOLE else 2
        long = [row_of(length, index / 100) for index in range(number)]
        compare_steps(bench, model, f"rows of {length:,}, r 16 on all", long, LINEAR, 16)
    return {
        **facts(bench, attention),
        "product_gigaflops": {n: round(product_rate(bench, n)) for n in (512, 2048, 8192)},
        "copied_gigabytes_per_second": round(copied_bytes_per_second(bench) / 1e9, 1),
        "peak_gib": bench.peaks,
        "figures": [asdict(figure) for figure in bench.figures],
        "left_out": bench.left_out,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter, in 4 minutes")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where to write")
    given = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not given.small:
        sys.exit(
            f"torch {torch.__version__} sees no CUDA GPU here, and this measures one. To try the "
            "script without, with figures that say nothing: python -m benchmarks.gpu --small"
        )
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    device = torch.device("cuda", torch.cuda.current_device()) if has_gpu else torch.device("cpu")
    bench = Bench(device, size_of(quick=given.quick, small=given.small))
    found = measure(bench)
    given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{found['date']}, GPU: {found['gpu']}, attention: {found['attention']}, {versions}\n")
    if found["is_small"]:
        print("A tiny model was measured (--small), so these figures say nothing.\n")
    print(table(bench.figures))
    for line in bench.left_out:
        print(f"\nleft out: {line}")
    print(f"\nwritten to {given.json}")


if __name__ == "__main__":
    main()
