"""Preference losses (DPO and related ones) over packs in which the answers of a pair are adjacent.

    a pack          better 0   worse 0   better 1   worse 1
    log p           b0         w0        b1         w1        summed over the learned tokens
    reference       the same, by the base model, with the adapter disabled

    sigmoid (DPO)   -log sigmoid(beta ((b - b_ref) - (w - w_ref)))
    hinge           max(0, 1 - beta ((b - b_ref) - (w - w_ref)))
    ipo             ((b - b_ref) / len b - (w - w_ref) / len w - 1 / (2 beta))^2
    simpo           -log sigmoid(beta (b / len b - w / len w) - gamma)
    orpo            -b / len b - beta log sigmoid(log odds(b / len b) - log odds(w / len w))

The last two need no reference. The loss of a step is the mean over its pairs.

Sources: DPO https://arxiv.org/abs/2305.18290, hinge 2305.10425, IPO 2310.12036, SimPO 2405.14734,
ORPO 2403.07691. The formulas are those of TRL 1.16, with which
tests/objective/test_preference.py compares them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glmtune.data.batches import MicroBatch
from glmtune.kernels.chunked_loss import rows_per_chunk
from glmtune.objective.measurements import Measurements
from glmtune.objective.next_token import (
    accepts_score,
    labels_of_next,
    learned_positions,
    unwrap,
)
from glmtune.recipe.sections import PreferenceSection
from glmtune.template.base import IGNORE


class Preference:
    """The loss of a step of pairs.

    Args:
        section: the loss and its constants.
    """

    def __init__(self, section: PreferenceSection) -> None:
        self._section = section
        self._noted = {True: Measurements(), False: Measurements()}

    def count(self, part: MicroBatch) -> int:
        """Count the pairs, without those that only keep an idle process busy."""
        return int((learned_lengths(part)[::2] > 0).sum())

    def loss(self, model: Any, part: MicroBatch) -> Tensor:
        """Sum the loss over the pairs of a micro-batch.

        Args:
            model: the policy; for a loss with a reference, it has an adapter.
            part: a pack of pairs.
        """
        section = self._section
        lengths = learned_lengths(part)
        learned = sequence_logps(model, part)
        if section.has_reference:
            learned = learned - reference_logps(model, part)
        if section.loss in ("ipo", "simpo", "orpo"):
            learned = learned / lengths.clamp(min=1)
        losses = pair_losses(learned[::2], learned[1::2], section)
        counts = lengths[::2] > 0
        self._note(learned.detach(), counts, is_training=model.training)
        return (losses * counts).sum()

    def measured(self, *, is_training: bool) -> dict[str, tuple[float, float]]:
        """Return how often the better answer has the higher reward, and the mean rewards."""
        seen = dict(_NOTHING)
        for pairs, right, margin, chosen, rejected in self._noted[is_training].take():
            seen["pairs"] += pairs
            seen["reward_accuracy"] += right
            seen["reward_margin"] += self._section.beta * margin
            seen["reward_chosen"] += self._section.beta * chosen
            seen["reward_rejected"] += self._section.beta * rejected
        return {name: (seen[name], seen["pairs"]) for name in _NOTHING if name != "pairs"}

    def _note(self, rewards: Tensor, counts: Tensor, *, is_training: bool) -> None:
        better, worse = (torch.where(counts, each, 0) for each in (rewards[::2], rewards[1::2]))
        margins = better - worse
        self._noted[is_training].note(
            counts.sum(), (margins > 0).sum(), margins.sum(), better.sum(), worse.sum()
        )


_NOTHING = dict.fromkeys(
    ("pairs", "reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected"), 0.0
)


def pair_losses(better: Tensor, worse: Tensor, section: PreferenceSection) -> Tensor:
    """Compute the loss of each pair.

    Args:
        better, worse: float32, (pairs,): log-probabilities of the answers, less those of the
            reference where there is one; per token for ipo, simpo and orpo.
        section: the loss and its constants.
    """
    beta, margin = section.beta, better - worse
    match section.loss:
        case "sigmoid":
            return -F.logsigmoid(beta * margin)
        case "hinge":
            return torch.relu(1 - beta * margin)
        case "ipo":
            return (margin - 1 / (2 * beta)) ** 2
        case "simpo":
            return -F.logsigmoid(beta * margin - section.simpo_gamma)
        case "orpo":
            log_odds = margin - (_log_not(better) - _log_not(worse))
            return -better - beta * F.logsigmoid(log_odds)


def _log_not(log_p: Tensor) -> Tensor:
    """Compute log(1 - p) of log(p), which may be nearly 0."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))


def sequence_logps(model: Any, part: MicroBatch) -> Tensor:
    """Sum the log-probabilities of the learned tokens of each sequence: float32, (sequences,)."""
    keep, targets = learned_positions(part)
    given = {**part.inputs(), "use_cache": False, "logits_to_keep": keep}
    if accepts_score(model):

        def score(hidden: Tensor, output_layer: nn.Module) -> Tensor:
            return _logps_by_chunks(hidden.flatten(0, -2), output_layer, targets)

        logps = model(**given, score=score).loss
    else:
        logps = _logps(model(**given).logits.flatten(0, -2), targets)
    sequences = part.cu_seq_lens
    assert sequences is not None  # pairs come in packs
    positions = keep[0].nonzero()[:, 0] if keep.dtype == torch.bool else keep
    index = torch.searchsorted(sequences[1:].long(), positions, right=True)
    sums: Tensor = logps.float().new_zeros(len(sequences) - 1).index_add(0, index, logps.float())
    return sums


def _logps_by_chunks(hidden: Tensor, output_layer: nn.Module, targets: Tensor) -> Tensor:
    """Compute one chunk at a time, with its logits recomputed in the backward pass."""
    rows = max(1, rows_per_chunk(output_layer) // 4)  # all of a chunk's logits become float32 here

    def logps(chunk: Tensor, chunk_targets: Tensor) -> Tensor:
        return _logps(output_layer(chunk), chunk_targets)

    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    chunks = [checkpoint(logps, *part, use_reentrant=False) for part in parts]
    return torch.cat(chunks) if chunks else hidden.sum(dim=-1).float()


def _logps(logits: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def reference_logps(model: Any, part: MicroBatch) -> Tensor:
    """Compute the log-probabilities of the base model: adapter disabled and dropout off.

    The reference must use the kernels of the policy; otherwise the two would differ before the
    first step. On a CPU, bitsandbytes' 8-bit layers also round their inputs in evaluation, so they
    stay in training mode. WideLinear uses another kernel for few rows under no_grad
    (`glmtune.kernels.half_precision`), so gradients stay enabled, although none is computed and
    nothing is saved for one; with gradient checkpointing, inputs require gradients.
    """
    inner = unwrap(model)
    was_training = inner.training
    inner.eval()
    for module in inner.modules():
        if isinstance(module, nn.Linear):
            module.train(was_training)
    nothing = torch.empty(0)
    save_nothing = saved_tensors_hooks(lambda _: nothing, lambda _: nothing)
    with inner.disable_adapter(), save_nothing:
        logps = sequence_logps(inner, part)
    inner.train(was_training)
    return logps.detach()


def learned_lengths(part: MicroBatch) -> Tensor:
    """Count the learned tokens of each sequence: int64, (sequences,)."""
    assert part.cu_seq_lens is not None  # pairs come in packs
    predicts = labels_of_next(part.labels) != IGNORE
    before = F.pad(predicts[0].long().cumsum(0), (1, 0))  # (seq + 1,)
    return before[part.cu_seq_lens.long()].diff()
