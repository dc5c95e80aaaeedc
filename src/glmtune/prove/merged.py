"""Proof that the merged model answers as the model with its adapter does.

    weights      merged weight = base weight + update, rounded once to the dtype of the base,
                 in some columns of every adapted layer
    effect       scores of the trained model - scores of the base
    noise        scores streamed with a cache - scores in one pass, of the same weights; or what
                 rounding the input once more does to them, whichever is larger
    difference   scores of the merged model - scores of the trained model

What a layer computes with its adapter is taken from its forward pass in float32, one unit vector
per column, so the code that merges is not its own witness. In half precision a merged weight loses
the part of an update that is below its rounding: of a small update, most. Then each weight is
right, and the merged model still answers otherwise, so nothing is proved, and the reason is given.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from glmtune.errors import some
from glmtune.methods import method
from glmtune.prove.proof import MERGED, Proof
from glmtune.prove.streamed import Probe, compare, percent, rounding_noise, score_answer
from glmtune.use.export import merge

ALLOWED_ROUNDINGS = 3  # largest difference of scores, in multiples of the measured rounding noise
COLUMNS = 32  # of each weight, evenly spaced
# Roundings of a weight: a sum is rounded once; DoRA, IA3 and OFT multiply in the base's dtype.
SUM_ROUNDINGS, PRODUCT_ROUNDINGS = 1.05, 4.0
FLOAT32_NOISE = 64 * torch.finfo(torch.float32).eps  # of sums in another order, by the largest term


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of one layer's weight, before it is merged.

    Attributes:
        name: of the layer.
        module: whose weight will be merged.
        index: int64, (columns,).
        base, adapted: without and with the adapter, float32, (columns, out).
        roundings: that merging may take.
    """

    name: str
    module: nn.Linear
    index: Tensor
    base: Tensor
    adapted: Tensor
    roundings: float


def check_merged(model: Any, probes: Sequence[Probe], tolerance: float) -> Proof:
    """Merge the adapter into the base, layer by layer, and score the probes again.

    Only the merged model remains afterwards, so this is the last proof.

    Args:
        model: the trained peft model.
        probes: made with it before.
        tolerance: of the difference, as a share of what the adapter changes.
    """
    if not method.is_adapted(model):
        return Proof(
            MERGED, "not run", "the model itself was trained, so there is nothing to merge"
        )
    if not merge.can_merge(model):
        return Proof(
            MERGED, "not run", "this kind of adapter, or a quantized base, cannot be merged"
        )
    with model.disable_adapter():
        base = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    try:
        before = list(_columns(model))
        merge.merge_in_place(model)
    except torch.OutOfMemoryError:
        return Proof(MERGED, "not run", "there is not enough memory for a second copy of one layer")
    if wrong := [each.name for each in before if not _is_rounded_sum(each)]:
        return Proof(
            MERGED,
            "failed",
            f"the merged weights of {some(wrong)} are not those of base and adapter together, by "
            "more than their rounding. Keep the adapter separate, and report this.",
        )
    effect = compare(base).largest
    noise = compare([(each.streamed, each.trained) for each in probes]).largest
    if not effect > ALLOWED_ROUNDINGS * noise:
        return Proof(
            MERGED,
            "not run",
            f"the adapter changes scores by {percent(effect)} of their spread, and rounding by "
            f"{percent(noise)}, so there is nothing to compare; each merged weight is right",
        )
    return _compare_scores(model, probes, tolerance, effect, noise, _lost_share(before))


def _compare_scores(
    model: Any,
    probes: Sequence[Probe],
    tolerance: float,
    effect: float,
    noise: float,
    lost: float,
) -> Proof:
    """Return the verdict on the scores of a model whose weights are merged right."""
    scored = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    difference = compare(scored)
    if difference.largest > max(tolerance * effect, ALLOWED_ROUNDINGS * noise):
        noise = max(noise, rounding_noise(model, probes))
    measured = (
        f"{difference}, and the adapter changes them by {percent(effect)} (tolerance "
        f"{tolerance:.0%} of that, or {ALLOWED_ROUNDINGS} times the rounding of {percent(noise)})"
    )
    if difference.largest <= max(tolerance * effect, ALLOWED_ROUNDINGS * noise):
        return Proof(MERGED, "passed", measured)
    if difference.largest <= ALLOWED_ROUNDINGS * lost * effect:
        dtype = str(model.dtype).removeprefix("torch.")
        return Proof(
            MERGED,
            "not run",
            f"{measured}. Each merged weight is right, but rounding it to {dtype} loses "
            f"{percent(lost)} of so small an update. Keep the adapter separate, or merge into "
            "float32",
        )
    return Proof(
        MERGED,
        "failed",
        f"{measured}. A part of the update is lost in the merged weights: keep the adapter "
        "separate, or merge into float32.",
    )


@torch.no_grad()
def _columns(model: Any) -> Iterator[Columns]:
    """Compute some columns of the weight of every adapted linear layer, with its adapter."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules: Iterable[tuple[str, Any]] = model.named_modules()
    layers = [(name, module) for name, module in modules if isinstance(module, BaseTunerLayer)]
    for name, layer in cast("list[tuple[str, Any]]", layers):
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear):
            continue
        number = min(COLUMNS, base.in_features)
        index = torch.arange(number, device=base.weight.device) * base.in_features // number
        units = torch.zeros(1, number, base.in_features, device=base.weight.device)
        units[0, torch.arange(number), index] = 1
        exact = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        exact.weight = nn.Parameter(base.weight.float(), requires_grad=False)
        layer.base_layer = exact
        try:
            adapted = layer(units)[0]
        finally:
            layer.base_layer = base
        is_sum = isinstance(layer, LoraLayer) and not layer.lora_variant
        yield Columns(
            name=name.removeprefix("base_model.model."),
            module=base,
            index=index,
            base=base.weight[:, index].float().T,
            adapted=adapted,
            roundings=SUM_ROUNDINGS if is_sum else PRODUCT_ROUNDINGS,
        )


def _merged(columns: Columns) -> Tensor:
    return columns.module.weight.detach()[:, columns.index].float().T


def _is_rounded_sum(columns: Columns) -> bool:
    """Whether a merged weight is what its layer computed, up to the rounding of its dtype."""
    dtype = columns.module.weight.dtype
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(torch.maximum(columns.adapted.abs(), _merged(columns).abs()))
    spacing = torch.ldexp(torch.full_like(columns.adapted, info.eps), exponent - 1)
    spacing = spacing.clamp(min=info.smallest_normal * info.eps)
    update = (columns.adapted - columns.base).abs()  # is rounded before it is added
    allowed = columns.roundings * (spacing + info.eps * update) / 2
    allowed = allowed + FLOAT32_NOISE * max(columns.base.abs().max(), columns.adapted.abs().max())
    return bool(((_merged(columns) - columns.adapted).abs() <= allowed).all())


def _lost_share(layers: Sequence[Columns]) -> float:
    """Return how much of the update rounding has taken, as a share of its norm."""
    lost = sum(float((_merged(each) - each.adapted).square().sum()) for each in layers)
    update = sum(float((each.adapted - each.base).square().sum()) for each in layers)
    return (lost / update) ** 0.5 if update else 0.0
