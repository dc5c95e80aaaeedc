"""Is a bfloat16 step as fast as the machine allows, and how does it compare?

    python -m benchmarks.step [--quick]

The same rows are learned in turn, one optimizer step each (forward, backward, clipping, AdamW), by

    ours      packs of 512 tokens, logits of learned positions only
    Trainer   transformers' Trainer and peft, padded batches of 2
    TRL       SFTTrainer, packs of 512 tokens ("bfd"); left out where trl is not installed,
              and with --quick

on slices of 4 and 2 layers (with --quick 2) of one ChatGLM with random weights, LoRA r 8 on
query_key_value, in real tokens a second. A quarter of a padded batch is padding, as it is with
alpaca rows. The peers have a process of their own, with the memory settings of PyTorch; ours has
those of `glmtune` (train/process_memory.py). The floor is the products alone at the rate of this
run. Needs 11 GiB.
"""

import functools
import importlib.util
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import slice_of
from benchmarks.slices import (
    PACK_TOKENS,
    WHOLE,
    blocks_of,
    layers_of,
    packs_of,
    product_rates,
    row_of,
    rows_of,
    seconds,
    show_layers,
    title,
    with_whole,
    work_per_token,
)
from glmtune.data.batches import pad_examples
from glmtune.methods import lora
from glmtune.model.load import load_model
from glmtune.objective.next_token import count_learned_tokens, next_token_loss
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import Example
from glmtune.train import process_memory

Step = Callable[[Sequence[Example]], float]
"""Learn rows in one optimizer step, and say how many seconds it took."""

OURS, TRAINER, TRL = "ours", "Trainer, padded", "TRL, packed"
PEER_LORA = peft.LoraConfig(
    r=8, lora_alpha=32, target_modules=["query_key_value"], task_type="CAUSAL_LM"
)
BATCH_SIZE = 2


Source = int | Path
"""A slice of so many layers, or the folder of a checkpoint."""


def base_of(source: Source) -> Any:
    """A slice with random weights, or a checkpoint as it lies in its files."""
    return slice_of(source) if isinstance(source, int) else load_model(source)


def ours(source: Source) -> tuple[Any, Step]:
    """The model and the step of `glmtune train`."""
    model = base_of(source)
    model.set_attn_implementation("packed")
    model = lora.attach(model, LoraSection(r=8, target_modules=("query_key_value",)))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def learn(rows: Sequence[Example]) -> None:
        packs = packs_of(rows)
        learned = sum(count_learned_tokens(pack.labels) for pack in packs)
        for pack in packs:
            (next_token_loss(model, pack) / learned).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, lambda rows: seconds(lambda: learn(rows))


class Stopwatch(transformers.TrainerCallback):  # type: ignore[misc]
    """Times one step of a Trainer, without what comes before and after its loop."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.began


def settings(batch_size: int, num_batches: int, folder: str) -> dict[str, Any]:
    """One optimizer step, and nothing else."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": num_batches,
        "max_steps": 1,
        "learning_rate": 1e-4,
        "use_cpu": True,
        "bf16": False,  # autocast; the weights are bfloat16 already
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "gradient_checkpointing": False,
    }


def by_trainer(model: Any) -> Step:
    """The step of transformers' Trainer on padded batches."""

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        part = pad_examples([Example(row["input_ids"], row["labels"]) for row in rows], 0)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = torch.arange(part.input_ids.shape[1]) < lengths[:, None]
        return {
            "input_ids": part.input_ids,
            "labels": part.labels,
            "attention_mask": mask.long(),
        }

    def step(rows: Sequence[Example]) -> float:
        watch = Stopwatch()
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model=model,
                args=transformers.TrainingArguments(
                    **settings(BATCH_SIZE, len(rows) // BATCH_SIZE, folder)
                ),
                train_dataset=[{"input_ids": r.input_ids, "labels": r.labels} for r in rows],
                data_collator=collate,
                callbacks=[watch],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return watch.seconds

    return step


def by_trl(model: Any) -> Step:
    """The step of TRL's SFTTrainer on its own packs."""
    import trl

    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>")),
        unk_token="<unk>",
        pad_token="<unk>",
        eos_token="<eos>",
    )

    def step(rows: Sequence[Example]) -> float:
        watch = Stopwatch()
        columns = {
            "input_ids": [row.input_ids for row in rows],
            "labels": [row.labels for row in rows],
        }
        packs = trl.pack_dataset(datasets.Dataset.from_dict(columns), PACK_TOKENS, "bfd")
        with tempfile.TemporaryDirectory() as folder:
            trainer = trl.SFTTrainer(
                model=model,
                args=trl.SFTConfig(
                    **settings(1, len(packs), folder),
                    packing=True,
                    max_length=PACK_TOKENS,
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


def be_quiet() -> None:
    """Leave out what Trainers say, in this process."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()


@functools.cache
def peers(source: Source) -> tuple[Any, Any, dict[str, Step]]:
    """The model of the peers, all of its blocks, and the step of each."""
    be_quiet()
    base = base_of(source)
    base.config.use_cache = False
    tuned = peft.get_peft_model(base, PEER_LORA)
    base.set_attn_implementation("sdpa")
    steps = {TRAINER: by_trainer(tuned)}
    if importlib.util.find_spec("trl"):
        steps[TRL] = by_trl(tuned)
    return tuned, blocks_of(tuned), steps


def peer_names(source: Source) -> list[str]:
    """Who is there to compare with."""
    return list(peers(source)[2])


def peer_step(name: str, source: Source, layers: int, rows: Sequence[Example]) -> float:
    """Seconds of a peer's step through the first `layers` of its model."""
    model, blocks, steps = peers(source)
    show_layers(model, blocks, layers)
    return steps[name](rows)


def process_as_it_comes() -> ProcessPoolExecutor:
    """A process without the settings of memory that glmtune makes for itself."""
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    set_by_us = {
        name: os.environ.pop(name) for name in process_memory.DEFAULTS if name in os.environ
    }
    pool.submit(be_quiet).result()  # only now it starts, with the environment of this moment
    os.environ.update(set_by_us)
    return pool


def rows_for(turn: int, number: int) -> list[Example]:
    """The rows of a turn: each turn's are a token longer, as packs of a run differ in length."""
    return [row_of(len(row.input_ids) + turn, turn) for row in rows_of(number)]


def compare(
    source: Source, slices: Sequence[int], num_rows: int, turns: int, *, without: str = ""
) -> tuple[dict[str, dict[int, float]], float]:
    """Let every pipeline learn the same rows in turn.

    Args:
        source: the model.
        slices: numbers of layers.
        num_rows: of each turn.
        turns: beside one that warms up.
        without: a peer to leave out.

    Returns:
        Seconds a token, by pipeline and number of layers, medians of the turns; and the products'
        rate, 10^9 operations/s.
    """
    be_quiet()
    torch.manual_seed(0)
    model, step = ours(source)
    blocks = blocks_of(model)
    rates: list[float] = []
    taken: dict[str, dict[int, list[float]]] = {}
    with process_as_it_comes() as process:
        names = [name for name in process.submit(peer_names, source).result() if name != without]
        for turn in range(-1, turns):  # the first one warms up
            rows = rows_for(turn + 1, 2 if turn < 0 else num_rows)
            tokens = sum(len(row.input_ids) for row in rows)
            for layers in slices:
                show_layers(model, blocks, layers)
                rates.append(product_rates(["bfloat16"])["bfloat16"])
                now = {OURS: step(rows)}
                for name in names:
                    now[name] = process.submit(peer_step, name, source, layers, rows).result()
                if turn >= 0:
                    for name, spent in now.items():
                        taken.setdefault(name, {}).setdefault(layers, []).append(spent / tokens)
    medians = {
        name: {layers: statistics.median(times) for layers, times in found.items()}
        for name, found in taken.items()
    }
    return medians, statistics.median(rates)


def measure(quick: bool) -> list[Figure]:
    """Compare on 4 layers and on their first two, and work out 28."""
    slices = layers_of(quick)
    size, without = ((8, 1), TRL) if quick else ((16, 3), "")
    found, rate = compare(max(slices), slices, *size, without=without)
    found = {name: with_whole(taken) for name, taken in found.items()}
    return [figure(found, rate, name, n) for name in found if name != OURS for n in found[OURS]]


def figure(found: dict[str, dict[int, float]], rate: float, peer: str, layers: int) -> Figure:
    """One line of the table: us beside a peer."""
    return Figure(
        "bf16 step",
        title(layers),
        "tokens/s",
        1 / found[OURS][layers],
        1 / found[peer][layers],
        peer,
        floor=rate * 1e9 / work_per_token(layers),
        goal=1.6 if (layers, peer) == (WHOLE, TRAINER) else None,
    )


if __name__ == "__main__":
    run(measure, __doc__)
