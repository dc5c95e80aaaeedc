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
from glmtune.objective import next_token
from glmtune.objective.next_token import accepts_score, labels_of_next, unwrap
from glmtune.recipe.sections import PreferenceSection
from glmtune.template.base import IGNORE


class Preference:
    """The loss of a step of pairs.

    Args:
        section: the loss and its constants.
    """

    def __init__(self, section: PreferenceSection) -> None:
        self._section = section
        self._seen = {True: dict(_NOTHING), False: dict(_NOTHING)}

    def count(self, part: MicroBatch) -> int:
        """Count the pairs, without those that only keep an idle process busy."""
        _, lengths = learned_positions(part)
        return int((lengths[::2] > 0).sum())

    def loss(self, model: Any, part: MicroBatch) -> Tensor:
        """Sum the loss over the pairs of a micro-batch.

        Args:
            model: the policy; for a loss with a reference, it has an adapter.
            part: a pack of pairs.
        """
        section = self._section
        _, lengths = learned_positions(part)
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
        seen = self._seen[is_training]
        self._seen[is_training] = dict(_NOTHING)
        read = {name: float(value) for name, value in seen.items()}
        return {name: (read[name], read["pairs"]) for name in _NOTHING if name != "pairs"}

    def _note(self, rewards: Tensor, counts: Tensor, *, is_training: bool) -> None:
        better, worse = rewards[::2] * counts, rewards[1::2] * counts
        beta, seen = self._section.beta, self._seen[is_training]
        add(seen, "pairs", counts)
        add(seen, "reward_accuracy", better > worse)
        add(seen, "reward_margin", beta * (better - worse))
        add(seen, "reward_chosen", beta * better)
        add(seen, "reward_rejected", beta * worse)


def add(seen: dict[str, float | Tensor], name: str, values: Tensor) -> None:
    """Add a sum to a measurement; it stays on its device, so that nothing waits for a GPU."""
    seen[name] = seen[name] + values.sum(dtype=torch.float32)


_NOTHING: dict[str, float | Tensor] = dict.fromkeys(
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
    keep, targets = next_token.learned_positions(part)
    given = {**part.inputs(), "use_cache": False, "logits_to_keep": keep}
    if accepts_score(model):

        def score(hidden: Tensor, output_layer: nn.Module) -> Tensor:
            return _logps_by_chunks(hidden.flatten(0, -2), output_layer, targets)

        logps = model(**given, score=score).loss
    else:
        logps = _logps(model(**given).logits.flatten(0, -2), targets)
    sequences = part.cu_seq_lens
    assert sequences is not None  # pairs come in packs
    positions = keep if part.predicting is not None else keep[0].nonzero()[:, 0]
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
    save_nothing = saved_tensors_hooks(lambda _: None, lambda _: None)
    with inner.disable_adapter(), save_nothing:
        logps = sequence_logps(inner, part)
    inner.train(was_training)
    return logps.detach()


def learned_positions(part: MicroBatch) -> tuple[Tensor, Tensor]:
    """Find the positions that predict learned tokens, (1, seq), and their count per sequence."""
    assert part.cu_seq_lens is not None  # pairs come in packs
    predicts = labels_of_next(part.labels) != IGNORE
    before = F.pad(predicts[0].long().cumsum(0), (1, 0))  # (seq + 1,)
    return predicts, before[part.cu_seq_lens.long()].diff()
