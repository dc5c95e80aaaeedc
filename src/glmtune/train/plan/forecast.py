"""Predict memory and time of a run, compare them with machines, and find what would make it fit."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from glmtune import machine
from glmtune.errors import CheckpointError, DataError, RecipeError
from glmtune.model.load import load_config
from glmtune.recipe.methods import FreezeSection, FullSection, NoneSection
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.plan.cards import Basis, Card, find_card, parse_size
from glmtune.train.plan.estimate import CUDA_BYTES, RECOMPUTE, Estimate, Memory, MemoryEstimator
from glmtune.train.plan.timing import describe_work, measure_seconds_per_token, seconds_on, warm_up
from glmtune.train.plan.workload import Workload, describe_workload, encode_row_lengths

logger = logging.getLogger(__name__)

MIN_MAX_LENGTH = 128  # tokens; no lower data.max_length is suggested
WORTHWHILE_RATIO = 0.99  # a change that leaves more than this share of the memory is not suggested


@dataclass(frozen=True, slots=True)
class Change:
    """Recipe values to change, and the bytes required with this and all earlier changes."""

    overrides: tuple[str, ...]
    required: int


@dataclass(frozen=True, slots=True)
class CardTime:
    """The time of a run on a GPU that is known by name.

    Attributes:
        pack_seconds: of the heaviest pack, forward and backward.
        run_seconds: of all packs; None if the data is not available.
        basis: where the speed of the card comes from.
        source: of it.
    """

    pack_seconds: float
    run_seconds: float | None
    basis: Basis
    source: str


@dataclass(frozen=True, slots=True)
class Target:
    """A device to run on, and whether the run fits into its memory.

    Attributes:
        name: of the device.
        capacity: free bytes.
        memory: what the run would take.
        changes: to apply one after the other; empty if the run fits as it is.
        pack_tokens: of a pack at most; a GPU with more memory takes longer packs.
        recomputes: whether activations are recomputed although the recipe does not say so, since
            not even the smallest packs fit otherwise.
        time: of a GPU that is known by name, None for others.
        note: what else to know, or "".
    """

    name: str
    capacity: int
    memory: Memory
    changes: tuple[Change, ...] = ()
    pack_tokens: int | None = None
    recomputes: bool = False
    time: CardTime | None = None
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether the run fits without any change."""
        return self.memory.required <= self.capacity

    @property
    def would_fit(self) -> bool:
        """Whether the run fits with all changes."""
        return self.fits or (bool(self.changes) and self.changes[-1].required <= self.capacity)


@dataclass(frozen=True, slots=True)
class Plan:
    """The predicted memory and time of a run.

    Attributes:
        workload: what the run has to do, on this machine.
        note: why the workload is an upper bound, "" if it comes from the data.
        targets: this machine first, then the devices that were asked for.
        pack_seconds: of the heaviest pack on this machine, forward and backward; None if the
            run does not fit.
        run_seconds: of all packs; None also if the data is not available.
    """

    workload: Workload
    note: str
    targets: tuple[Target, ...]
    pack_seconds: float | None
    run_seconds: float | None


def make_plan(recipe: Recipe, devices: Sequence[str] = ()) -> Plan:
    """Predict memory and time of a run; no weights are read or downloaded.

    The memory that this process already has counts as part of the run, so call it from a new
    process for exact figures, as the command does.

    Args:
        recipe: the run.
        devices: GPUs to predict for in addition to this machine, by name ("4090") or by memory
            size ("24GB").

    Raises:
        CheckpointError: the model's configuration cannot be read.
        DataError: the data is available, but a row of it cannot be used.
        RecipeError: the adapter does not fit the model, a device is neither known nor a size, or
            nothing is trained.
    """
    if isinstance(recipe.adapter, NoneSection):
        raise RecipeError("adapter.method=none trains nothing; plan a run that does.")
    if recipe.training.sharded_by:
        raise RecipeError(
            "glmtune plan does not support training.sharding and training.deepspeed yet. Plan the "
            "run without them."
        )
    cards = {device: find_card(device) for device in devices}
    _check_fp8(recipe, [card for card in cards.values() if card])
    sizes = {
        device: card.memory_bytes if card else parse_size(device) for device, card in cards.items()
    }
    # Flash attention takes as much memory as packed attention, which runs on every device.
    recipe = build_recipe(recipe.model_dump(mode="json"), ["model.attn_implementation=packed"])
    load_config(recipe.model.name_or_path)
    rows, note = encode_row_lengths(recipe)
    workload = describe_workload(recipe, rows)
    has_gpu = torch.cuda.is_available() and not recipe.training.use_cpu
    here = torch.device("cuda" if has_gpu else "cpu")
    # The libraries that a first step loads belong to the base.
    warm_up(recipe, workload, here)
    base = CUDA_BYTES if has_gpu else machine.resident_bytes()
    free = torch.cuda.mem_get_info()[0] if has_gpu else machine.host_memory().available_bytes + base
    on_gpu = MemoryEstimator(rows, torch.device("cuda"), CUDA_BYTES)
    on_this = on_gpu if has_gpu else MemoryEstimator(rows, here, base)
    logger.info("plan: simulating a step on this machine")
    targets = [make_target("this machine", free, on_this, recipe)]
    if recipe.model.compute == "fp8" and not has_gpu:
        note = "but a CPU has no fp8: the run with model.compute=fp8 would be refused here"
        targets = [replace(targets[0], note=note)]
    for name, size in sizes.items():
        logger.info("plan: simulating a step on %s", name)
        targets.append(plan_for_gpu(name, size, cards[name], on_gpu, recipe))
    per_token = None
    if targets[0].fits:
        logger.info("plan: timing a layer on this machine")
        workload = on_this.estimate(recipe, free).workload
        per_token = measure_seconds_per_token(recipe, workload, here)
    return Plan(
        workload=workload,
        note=note,
        targets=tuple(targets),
        pack_seconds=per_token and per_token * sum(workload.lengths),
        run_seconds=per_token and workload.num_tokens and per_token * workload.num_tokens,
    )


def _check_fp8(recipe: Recipe, cards: Sequence[Card]) -> None:
    """Refuse a card that the run itself would refuse."""
    for card in cards:
        if recipe.model.compute == "fp8" and not card.has_fp8:
            raise RecipeError(
                f"{card.name} has no fp8: model.compute=fp8 needs a GPU of compute capability 8.9 "
                "or later (RTX 40 and 50, L4, H100 and later). Use model.compute=int8, or leave it "
                "out."
            )


def plan_for_gpu(
    name: str, size: int, card: Card | None, estimator: MemoryEstimator, recipe: Recipe
) -> Target:
    """Predict for a GPU that need not be here, and its time if it is known by name."""
    if card is None:
        return make_target(f"a GPU of {name}", size, estimator, recipe)
    note = ""
    if not card.has_bfloat16 and recipe.model.dtype == "bfloat16":
        note = f"{card.name} has no bfloat16: set model.dtype=float16"
    found = make_target(card.name, size, estimator, recipe)
    if not found.fits:
        return replace(found, note=note)
    chosen = estimator.estimate(recipe, size)
    return replace(found, note=note, time=_time_on(card, recipe, chosen))


def _time_on(card: Card, recipe: Recipe, chosen: Estimate) -> CardTime:
    workload = chosen.workload
    work = describe_work(recipe, workload, recomputes=chosen.recomputes)
    run = None
    if workload.num_tokens is not None and workload.num_packs is not None:
        run = seconds_on(card, recipe, work, workload.num_tokens, workload.num_packs)
    return CardTime(
        pack_seconds=seconds_on(card, recipe, work, sum(workload.lengths), 1),
        run_seconds=run,
        basis=card.basis,
        source=card.source,
    )


def make_target(name: str, capacity: int, estimator: MemoryEstimator, recipe: Recipe) -> Target:
    """Compare a run with a capacity; if it does not fit, collect changes until it does."""
    first = estimator.estimate(recipe, capacity)
    required, changes, changed = first.memory.required, [], recipe
    for overrides in memory_saving_changes(recipe, estimator.device):
        if required <= capacity:
            break
        try:
            tried = build_recipe(changed.model_dump(mode="json"), overrides)
            needed = estimator.estimate(tried, capacity).memory.required
        except (CheckpointError, DataError, RecipeError):  # not possible for this recipe or machine
            continue
        if needed <= WORTHWHILE_RATIO * required:
            changed, required = tried, needed
            changes.append(Change(tuple(overrides), required))
    return Target(
        name,
        capacity,
        first.memory,
        tuple(changes),
        pack_tokens=first.workload.max_tokens,
        recomputes=first.recomputes and not recipe.training.gradient_checkpointing,
    )


def memory_saving_changes(recipe: Recipe, device: torch.device) -> Iterator[list[str]]:
    """Yield changes that save memory; those that do not affect the result come first."""
    training = recipe.training
    batch = training.per_device_train_batch_size
    if batch > 1:
        steps = training.gradient_accumulation_steps * batch
        yield [
            "training.per_device_train_batch_size=1",
            f"training.gradient_accumulation_steps={steps}",
        ]
    if not training.gradient_checkpointing:
        yield [RECOMPUTE]
    is_frozen = not isinstance(recipe.adapter, FullSection | FreezeSection)
    if is_frozen and recipe.model.dtype in ("auto", "float32"):
        yield ["model.dtype=bfloat16"]
    if is_frozen and device.type == "cpu":
        yield ["model.compute=int8"]
    if is_frozen and device.type != "cpu":
        yield ["adapter.method=qlora"]
    if isinstance(recipe.adapter, FullSection):
        yield ["adapter.method=lora"]
    length = recipe.data.max_length // 2
    while length >= MIN_MAX_LENGTH:
        yield [f"data.max_length={length}"]
        length //= 2
