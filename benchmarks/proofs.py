"""The time that the proofs of a run add to an epoch.

    python -m benchmarks.proofs [--quick]

Every check is timed by itself, in turn with the steps of training: on slices of 2 and 4 layers of
ChatGLM3-6B with random weights, for what 28 layers would take. The run is one epoch of 1,000 rows
with the lengths of real ones, LoRA r 8 on query_key_value. With more epochs the checks at its
beginning and end are shared among them, and each but the last adds the samples at an evaluation.

Random weights never end an answer, so each reaches its limit: this is the worst case, and a
model that has learned to stop takes less. Needs 6 GiB.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import slice_of
from benchmarks.slices import (
    SLICES,
    blocks_of,
    packs_of,
    row_of,
    rows_of,
    seconds,
    show_layers,
    whole,
)
from glmtune.data.batches import pack_examples
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.chatglm.train_tokenizer import train_tokenizer
from glmtune.objective.next_token import count_learned_tokens, next_token_loss
from glmtune.prove import liveness
from glmtune.prove.answers import Prompt, answer_all, answer_limit
from glmtune.prove.forgetting import general_conversations, general_loss
from glmtune.prove.merged import check_merged
from glmtune.prove.packed import check_packed
from glmtune.prove.prompts import check_template_agrees
from glmtune.prove.saved import check_saved
from glmtune.prove.streamed import probe
from glmtune.prove.wanted import check_trained
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.sections import ChecksSection
from glmtune.template.base import IGNORE, Example, Template
from glmtune.template.select import template_for
from glmtune.train.alarms import Alarms
from glmtune.train.before import PACKED_ROWS, PROBED_ROWS, SAMPLED_PROMPTS, sample_limit

ROWS, TIMED_ROWS = 1000, 12
CHECKS = ChecksSection()
PROMPT_TOKENS = 30
GENERAL_TOKENS, GENERAL_LEARNED = 36, 17  # of a general row, as ChatGLM3's tokenizer cuts it
EXPECTED_TOKENS = 20  # of the longest of the 8 shortest answers in 64 rows of alpaca-zh
SAMPLES = "base answers, or samples at an evaluation"


def make_template(folder: Path) -> Template:
    """A tokenizer of the general rows' own text; its ids are among the model's."""
    lines = [message.content for row in general_conversations() for message in row]
    train_tokenizer(lines, 1000, folder)
    return template_for(ChatGLMTokenizer.from_pretrained(folder))


def draw_prompts(number: int) -> list[Prompt]:
    draw = random.Random(0)
    ids = [tuple(draw.randrange(1000, 60000) for _ in range(PROMPT_TOKENS)) for _ in range(number)]
    return [Prompt(each, "", num_expected=EXPECTED_TOKENS) for each in ids]


def general_row(seed: int) -> Example:
    """Make a row like the general ones, of random tokens."""
    ids = row_of(GENERAL_TOKENS, seed).input_ids
    unlearned = GENERAL_TOKENS - GENERAL_LEARNED
    return Example(ids, [IGNORE] * unlearned + ids[unlearned:])


def step(model: Any, optimizer: torch.optim.Optimizer, rows: int) -> None:
    """Learn some rows in one optimizer step, as training does."""
    packs = packs_of(rows_of(rows, seed=rows))
    learned = sum(count_learned_tokens(pack.labels) for pack in packs)
    for pack in packs:
        (next_token_loss(model, pack) / learned).backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def kept(model: Any) -> Any:
    """Put the base weights back that a merge changes."""
    layers = [layer.get_base_layer() for _, layer in adapted_layers(model)]
    before = [layer.weight.data for layer in layers]
    for layer in layers:
        layer.weight.data = layer.weight.data.clone()
    try:
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.weight.data = weight
        for _, layer in adapted_layers(model):
            layer.merged_adapters.clear()


def time_checks(model: Any, template: Template, folder: Path) -> Mapping[str, float]:
    """Time every check of a run once, in seconds."""
    prompts = draw_prompts(max(CHECKS.stop_prompts, SAMPLED_PROMPTS))
    few, limit = prompts[:SAMPLED_PROMPTS], answer_limit(prompts, CHECKS.max_new_tokens)
    start: dict[str, liveness.Start] = {}
    probes: list[Any] = []
    lora.save(model, folder, template)
    [row] = packs_of(rows_of(1))
    conversations = general_conversations()
    general = [general_row(seed) for seed in range(len(conversations))]

    def look_alive() -> None:
        start.update(liveness.remember(model))
        for tensor, at_start in start.items():
            start[tensor] = replace(at_start, digest="", is_zero=False)
        check_trained(model, LoraSection(r=8))
        liveness.check_changed(model, start)

    def merge() -> None:
        with torch.no_grad(), kept(model):
            began = time.perf_counter()
            shown = check_merged(model, probes, CHECKS.merged_tolerance)
            taken["merged"] = time.perf_counter() - began
        assert shown.verdict != "not run", shown  # or it would have been timed half

    packed_rows = rows_of(PACKED_ROWS)
    pack = pack_examples(packed_rows, range(PACKED_ROWS))
    work: dict[str, Callable[[], object]] = {
        "a pack and its rows": lambda: check_packed(model, pack, packed_rows),
        SAMPLES: lambda: answer_all(model, template, few, sample_limit(prompts, CHECKS)),
        "answers end": lambda: answer_all(model, template, prompts, limit),
        "general rows, twice": lambda: [
            general_loss(model, general, torch.device("cpu")) for _ in range(2)
        ],
        "all has learned": look_alive,
        "reloaded": lambda: check_saved(model, folder, row),
        "streamed": lambda: probes.extend(probe(model, folder, template, few)),
        "chat asks as training": lambda: check_template_agrees(
            template, conversations[:PROBED_ROWS]
        ),
    }
    taken: dict[str, float] = {name: seconds(each) for name, each in work.items()}
    merge()
    return taken


def time_watch(num_steps: int) -> float:
    """Time what looks at every step of an epoch."""
    alarms = Alarms(CHECKS)

    def look() -> None:
        for number in range(1, num_steps + 1):
            alarms.step(number, 2.0, 1.0)

    return seconds(look)


def measure(quick: bool = False) -> list[Figure]:
    model = lora.attach(slice_of(SLICES[-1]), LoraSection(r=8, target_modules=("query_key_value",)))
    model.set_attn_implementation("packed")
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.normal_(std=0.02)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    blocks = blocks_of(model)
    rows = 4 if quick else TIMED_ROWS
    steps: dict[int, list[float]] = {layers: [] for layers in SLICES}
    checks: dict[int, list[Mapping[str, float]]] = {layers: [] for layers in SLICES}
    with tempfile.TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "tokenizer")
        for _ in range(2 if quick else 4):
            for layers in SLICES:
                show_layers(model, blocks, layers)
                model.train()
                steps[layers].append(seconds(lambda: step(model, optimizer, rows)))
                checks[layers].append(time_checks(model, template, Path(folder) / str(layers)))
    tokens = sum(len(each.input_ids) for each in rows_of(ROWS))
    share = tokens / sum(len(each.input_ids) for each in rows_of(rows, seed=rows))
    epoch = whole({layers: share * typical(steps[layers]) for layers in SLICES})
    found = {
        name: whole({layers: typical([each[name] for each in checks[layers]]) for layers in SLICES})
        for name in checks[SLICES[0]][0]
    }
    found["watching each step"] = time_watch(ROWS)
    figures = [Figure("proofs", f"an epoch of {ROWS:,} rows, {tokens:,} tokens", "s", epoch)]
    figures += [Figure("proofs", name, "s", value) for name, value in found.items()]
    total = 100 * sum(found.values()) / epoch
    return [
        *figures,
        Figure("proofs", "all checks", "% of an epoch", total, limit=3, less_is_better=True),
    ]


def typical(taken: Sequence[float]) -> float:
    """The median, without the first, which finds everything cold."""
    return statistics.median(taken[1:])


if __name__ == "__main__":
    run(measure, __doc__)
