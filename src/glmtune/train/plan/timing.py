"""The time of a run: measured on a layer of this machine, or computed for a GPU by its name."""

import copy
import math
import time
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from glmtune.data.batches import MicroBatch
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.model.layers import decoder_layers
from glmtune.objective.next_token import NeedsWholeStep, Objective
from glmtune.recipe.methods import LoraSection, QloraSection
from glmtune.recipe.recipe import Recipe
from glmtune.template.base import IGNORE
from glmtune.train.plan.cards import FP8_SPEED, INT8_SPEED, LAUNCH_SECONDS, NF4_SPEED, Card
from glmtune.train.plan.simulation import (
    attach_meta_adapter,
    keep_layers,
    make_meta_model,
    needs_all_layers,
)
from glmtune.train.plan.workload import Workload
from glmtune.train.precision import autocast
from glmtune.train.run import choose_task

SAMPLE_TOKENS = 256  # in the step that is timed; a GPU takes as many as a pack has
SAMPLE_TOKENS_ON_GPU = 8192
SMALL_SHARE = 0.1  # of the output layer in all weights, below which it is not timed
TIMING_SECONDS = 1.0  # the step is repeated for so long, and the fastest counts


@dataclass(frozen=True, slots=True)
class Work:
    """What a step of a model computes.

    Attributes:
        operations: of the products of one token, both ways.
        num_layers: of the model.
    """

    operations: float
    num_layers: int


def measure_seconds_per_token(
    recipe: Recipe,
    workload: Workload,
    device: torch.device,
    *,
    max_tokens: int | None = None,
    seconds: float = TIMING_SECONDS,
) -> float:
    """Measure the seconds per token of a forward and backward pass.

    A few tokens go through one layer of zeros; the full depth is that many times as long. Where
    the output layer and the loss are much of the work, they are timed as well, and else computed
    from their share of the weights. Pages of zeros that are never written take no memory. If layers
    are trained in different ways, the time is that of LoRA.

    Args:
        recipe: the run.
        workload: of it.
        device: of this machine.
        max_tokens: in the pack that is timed.
        seconds: for which it is repeated.
    """
    if needs_all_layers(recipe.adapter):
        recipe = recipe.model_copy(update={"adapter": LoraSection()})
    model = make_meta_model(recipe, device)
    if max_tokens is None:
        max_tokens = SAMPLE_TOKENS if device.type == "cpu" else SAMPLE_TOKENS_ON_GPU
    batch = workload.micro_batch(max_tokens)
    num_tokens = batch.input_ids.numel()
    layers = decoder_layers(model)
    learned = int((batch.labels != IGNORE).sum()) / num_tokens
    share = learned * _num_weights(model.get_output_embeddings()) / _num_weights(layers)
    one = keep_layers(model, 1)
    with without_cudnn():
        if recipe.has_labels or share > SMALL_SHARE:
            both = _seconds(copy.deepcopy(one), recipe, batch, device, seconds)
            layer = _seconds(one, recipe, _without_labels(batch), device, seconds)
            return (both + (len(layers) - 1) * min(layer, both)) / num_tokens
        layer = _seconds(one, recipe, _without_labels(batch), device, seconds)
    return layer * len(layers) * (1 + share) / num_tokens


def warm_up(recipe: Recipe, workload: Workload, device: torch.device) -> None:
    """Let a tiny part of a step load the libraries that the first step would load."""
    unlabeled = replace(workload, learned=(0,) * len(workload.learned))
    measure_seconds_per_token(recipe, unlabeled, device, max_tokens=8, seconds=0)


def _without_labels(batch: MicroBatch) -> MicroBatch:
    """Leave out the output layer and the loss."""
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE))


def _num_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _seconds(
    model: Any, recipe: Recipe, batch: MicroBatch, device: torch.device, seconds: float
) -> float:
    """Repeat a forward and backward pass of zeros for some seconds, and return the fastest."""
    objective: Objective = choose_task(recipe, cross_entropy_sum).objective
    if recipe.has_labels:
        batch = replace(batch, is_good=torch.ones(len(batch.rows), dtype=torch.bool))
    model = attach_meta_adapter(model, recipe, device).to_empty(device=device)
    model.tie_weights()
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    model.enable_input_require_grads()  # as for a layer that follows another one
    end, fastest = time.perf_counter() + seconds, math.inf
    while fastest == math.inf or time.perf_counter() < end:
        began = time.perf_counter()
        with autocast(recipe.training, device):
            if isinstance(objective, NeedsWholeStep):
                objective.begin(model, [batch], device)
            loss = objective.loss(model, batch.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the GPU
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def describe_work(recipe: Recipe, workload: Workload, *, recomputes: bool) -> Work:
    """Count the operations of a token: 2 for each weight of a product, times its passes.

    Args:
        recipe: the run.
        workload: of it; has the length of a row, which attention depends on, and the share of
            tokens whose logits are computed.
        recomputes: whether activations are recomputed in the backward pass.
    """
    model = make_meta_model(recipe, torch.device("cuda"))
    head, layers = model.get_output_embeddings(), decoder_layers(model)
    in_layers = _num_weights(layers)
    learned = sum(workload.learned) / max(sum(workload.lengths), 1)
    in_head = _num_weights(head) * learned
    row = sum(n * n for n in workload.lengths) / max(sum(workload.lengths), 1)
    attention = 2 * row * model.config.hidden_size * len(layers)  # forward, half of it causal
    forward = 2 * (in_layers + in_head) + attention
    passes = forward + 2 * (in_layers + in_head) + 2.5 * attention
    if not isinstance(recipe.adapter, LoraSection | QloraSection) and recipe.trains:
        passes += 2 * (in_layers + in_head) if recipe.adapter.method == "full" else 0
    if recomputes:
        passes += 2 * in_layers + attention
    if (recipe.is_preference or recipe.has_labels) and recipe.preference.has_reference:
        passes += forward * (3 if recipe.has_labels else 1)  # and two for mismatched rows
    return Work(passes, len(layers))


def seconds_on(card: Card, recipe: Recipe, work: Work, tokens: float, num_packs: float) -> float:
    """Compute how long a card takes for a number of tokens in so many packs."""
    rate = card.rate
    if isinstance(recipe.adapter, QloraSection):
        rate *= NF4_SPEED
    speeds: dict[str | None, float] = {"int8": INT8_SPEED, "fp8": FP8_SPEED}
    rate *= speeds.get(recipe.model.compute, 1.0)
    launches = num_packs * work.num_layers * LAUNCH_SECONDS
    return max(tokens * work.operations / rate, launches)
