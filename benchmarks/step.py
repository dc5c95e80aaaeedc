"""Is a bfloat16 step as fast as the machine allows, and how does it compare?

    python -m benchmarks.step [--quick]

The same rows are learned in turn, one optimizer step each (forward, backward, clipping, AdamW), by

    ours      packs of 512 tokens, logits of learned positions only
    Trainer   transformers' Trainer and peft, padded batches of 2
    TRL       SFTTrainer, packs of 512 tokens ("bfd"); left out where trl is not installed

on slices of 4 and 2 layers of one ChatGLM with random weights, LoRA r 8 on query_key_value, in real
tokens a second. The floor is the products alone at the rate of this run. Needs 11 GiB.
"""

import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import peft
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import glmtune.attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import slice_of
from benchmarks.slices import (
    PACK_TOKENS,
    SLICES,
    WHOLE,
    blocks_of,
    packs_of,
    product_rates,
    rows_of,
    seconds,
    show_layers,
    whole,
    work_per_token,
)
from glmtune import adapter
from glmtune.data.batches import pad_examples
from glmtune.loss import count_learned_tokens, next_token_loss
from glmtune.recipe import LoraSection
from glmtune.template import Example

Step = Callable[[Sequence[Example]], float]
"""Learn rows in one optimizer step, and say how many seconds it took."""

PEER_LORA = peft.LoraConfig(
    r=8, lora_alpha=32, target_modules=["query_key_value"], task_type="CAUSAL_LM"
)
BATCH_SIZE = 2


def ours(model: Any) -> Step:
    """The step of `glmtune train`."""
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

    return lambda rows: seconds(lambda: learn(rows))


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


def measure(quick: bool) -> list[Figure]:
    """Let every pipeline learn the same rows in turn, on 4 layers and on their first two."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    torch.manual_seed(0)
    base = slice_of(max(SLICES))
    base.config.use_cache = False
    tuned = peft.get_peft_model(base, PEER_LORA)
    base.set_attn_implementation("sdpa")
    mine = slice_of(max(SLICES))
    mine.set_attn_implementation("packed")
    mine = adapter.attach(mine, LoraSection(r=8, target_modules=("query_key_value",)))
    steps: dict[str, tuple[Any, Step]] = {
        "ours": (mine, ours(mine)),
        "Trainer, padded": (tuned, by_trainer(tuned)),
    }
    if importlib.util.find_spec("trl"):
        steps["TRL, packed"] = (tuned, by_trl(tuned))
    blocks = {id(model): blocks_of(model) for model in (tuned, mine)}
    rates: list[float] = []
    num_rows, turns = (8, 1) if quick else (16, 3)
    taken: dict[tuple[str, int], list[float]] = {}
    for turn in range(-1, turns):  # the first one warms up
        rows = rows_of(2 if turn < 0 else num_rows, seed=turn + 1)
        tokens = sum(len(row.input_ids) for row in rows)
        for layers in SLICES:
            rates.append(product_rates(["bfloat16"])["bfloat16"])
            for name, (model, step) in steps.items():
                show_layers(model, blocks[id(model)], layers)
                per_token = step(rows) / tokens
                if turn >= 0:
                    taken.setdefault((name, layers), []).append(per_token)
    medians = {key: statistics.median(times) for key, times in taken.items()}
    for name in steps:
        medians[name, WHOLE] = whole({layers: medians[name, layers] for layers in SLICES})
    return [
        Figure(
            "bf16 step", f"{layers} layers" + ", extrapolated" * (layers == WHOLE), "tokens/s",
            1 / medians["ours", layers], 1 / medians[peer, layers], peer,
            floor=statistics.median(rates) * 1e9 / work_per_token(layers),
            goal=1.6 if (layers, peer) == (WHOLE, "Trainer, padded") else None,
        )
        for peer in list(steps)[1:]
        for layers in (*SLICES, WHOLE)
    ]  # fmt: skip


if __name__ == "__main__":
    run(measure, __doc__)
