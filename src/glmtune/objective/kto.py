"""The loss of KTO: rows with one answer each, and a label that says whether it is a good one.

    r = log p(answer | prompt) - the same of the base model, with the adapter disabled
    z = the mean of r over mismatched rows of the step, but at least 0; it gets no gradient

    good answer    desirable_weight   * (1 - sigmoid(beta (r - z)))
    bad answer     undesirable_weight * (1 - sigmoid(beta (z - r)))

z estimates how far the model is from its base. Each prompt gets the answer of another row:

    rows of a step, in the order of the file     A  B  C  D
    answers that they get                        c  d  a  b      half of the step away

so neighbors in the file, which often answer one prompt, are not mixed. The whole step is taken, so
its division into micro-batches changes nothing; each of several processes takes its own rows. Where
there is one row alone, z is 0. The loss of a step is the mean over its rows.

Source: Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, equation 7. TRL 1.16 has the same
loss, with which tests/train/test_trl.py compares it; it takes z from a micro-batch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from glmtune.data.batches import MicroBatch, micro_batch_of
from glmtune.data.packing import group_rows, pack
from glmtune.objective.measurements import Measurements
from glmtune.objective.next_token import unwrap
from glmtune.objective.preference import learned_lengths, reference_logps, sequence_logps
from glmtune.recipe.sections import PreferenceSection
from glmtune.template.base import IGNORE, Example


class Kto:
    """The loss of a step of labeled rows.

    Args:
        section: beta and the weights.
        max_length: of a mismatched row, in tokens; what is beyond it is cut off.
    """

    def __init__(self, section: PreferenceSection, max_length: int) -> None:
        self._section = section
        self._max_length = max_length
        self._kl = 0.0
        self._kls: dict[bool, list[float]] = {True: [], False: []}
        self._noted = {True: Measurements(), False: Measurements()}

    def count(self, part: MicroBatch) -> int:
        """Count the rows, without those that only keep an idle process busy."""
        return int((learned_lengths(part) > 0).sum())

    def begin(
        self,
        model: Any,
        parts: Iterable[MicroBatch],
        device: torch.device,
        total: Callable[[float], float] = float,
    ) -> None:
        """Estimate z from mismatched rows; as for `NeedsWholeStep`."""
        parts = list(parts)
        most = max((part.input_ids.numel() for part in parts), default=0)
        mismatched = _mismatched(parts, self._max_length)
        lengths = [len(example.input_ids) for example in mismatched]
        inner = unwrap(model)
        was_training = inner.training
        inner.eval()
        differences = Measurements()
        with torch.no_grad():
            for rows in group_rows(range(len(mismatched)), lengths, most):
                batch = micro_batch_of(pack([mismatched[row] for row in rows])).to(device)
                learned = sequence_logps(inner, batch)
                with inner.disable_adapter():
                    learned = learned - sequence_logps(inner, batch)
                differences.note(learned.sum())
        inner.train(was_training)
        difference = total(sum((each for (each,) in differences.take()), start=0.0))
        count = total(len(mismatched))
        self._kl = max(0.0, difference / count) if count else 0.0
        self._kls[was_training].append(self._kl)

    def loss(self, model: Any, part: MicroBatch) -> Tensor:
        """Sum the loss over the rows of a micro-batch.

        Args:
            model: the policy, with an adapter.
            part: a pack of rows, with their labels.
        """
        section = self._section
        assert part.is_good is not None  # `pack_labeled` made it
        rewards = sequence_logps(model, part) - reference_logps(model, part)
        losses = kto_losses(rewards, part.is_good, self._kl, section)
        counts = learned_lengths(part) > 0
        self._note(section.beta * rewards.detach(), part.is_good, counts, model.training)
        return (losses * counts).sum()

    def measured(self, *, is_training: bool) -> dict[str, tuple[float, float]]:
        """Return the mean rewards of good and of bad answers, and z."""
        rows = self._noted[is_training].take()
        kls, self._kls[is_training] = self._kls[is_training], []
        chosen, num_chosen, rejected, num_rejected = (
            sum(row[index] for row in rows) for index in range(4)
        )
        return {
            "reward_chosen": (chosen, num_chosen),
            "reward_rejected": (rejected, num_rejected),
            "kl": (sum(kls), len(kls)),
        }

    def _note(self, rewards: Tensor, is_good: Tensor, counts: Tensor, is_training: bool) -> None:
        values = []
        for chosen in (is_good & counts, ~is_good & counts):
            values += [torch.where(chosen, rewards, 0).sum(), chosen.sum()]
        self._noted[is_training].note(*values)


def kto_losses(rewards: Tensor, is_good: Tensor, kl: float, section: PreferenceSection) -> Tensor:
    """Compute the loss of each row.

    Args:
        rewards: float32, (rows,): log-probabilities of the answers, less those of the reference.
        is_good: bool, (rows,).
        kl: z, at least 0.
        section: beta and the weights.
    """
    better = torch.where(is_good, rewards - kl, kl - rewards)
    weights = torch.where(is_good, section.desirable_weight, section.undesirable_weight)
    losses: Tensor = weights * torch.sigmoid(-section.beta * better)  # 1 - sigmoid(beta better)
    return losses


def _mismatched(parts: Iterable[MicroBatch], max_length: int) -> list[Example]:
    """Give each prompt the answer of the row half of the step away; none for a single row."""
    rows = sorted(_prompts_and_answers(parts), key=lambda each: each[0])
    far = len(rows) // 2
    if not far:
        return []
    answers = [answer for _, _, answer in rows]
    answers = [*answers[far:], *answers[:far]]
    return [
        Example(
            (prompt + answer.input_ids)[:max_length],
            ([IGNORE] * len(prompt) + answer.labels)[:max_length],
        )
        for (_, prompt, _), answer in zip(rows, answers, strict=True)
    ]


def _prompts_and_answers(
    parts: Iterable[MicroBatch],
) -> Iterator[tuple[int, list[int], Example]]:
    """Cut the rows of packs before their first learned token, and after the last one."""
    for part in parts:
        assert part.cu_seq_lens is not None  # rows come in packs
        ends = part.cu_seq_lens.tolist()
        ids, labels = part.input_ids[0].tolist(), part.labels[0].tolist()
        for row, start, end in zip(part.rows, ends, ends[1:], strict=False):
            own = labels[start:end]
            learned = [position for position, label in enumerate(own) if label != IGNORE]
            if learned:
                first, last = learned[0], learned[-1] + 1
                answer = Example(ids[start + first : start + last], own[first:last])
                yield row, ids[start : start + first], answer
