"""Padded batches, which others train on; tests and benchmarks compare packs with them."""

from collections.abc import Sequence

import torch

from glmtune.data.batches import MicroBatch
from glmtune.template.base import IGNORE, Example


def pad_examples(examples: Sequence[Example], pad_id: int) -> MicroBatch:
    """Pad examples on the right to the longest of them."""
    seq = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), seq), pad_id, dtype=torch.long)
    labels = torch.full((len(examples), seq), IGNORE, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        labels[row, :length] = torch.tensor(example.labels, dtype=torch.long)
    return MicroBatch(input_ids, labels)
