"""Faults of prompts and packs: training that sees what no chat will ever ask."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from glmtune.conversation import Conversation
from glmtune.data.batches import MicroBatch
from glmtune.template.base import IGNORE
from glmtune.template.chatglm import ChatGLMTemplate


def _asking(change: Callable[[list[int]], list[int]]) -> Callable[[Any], ChatGLMTemplate]:
    """A template whose chat changes the ids of a prompt."""

    class Otherwise(ChatGLMTemplate):
        def prompt_ids(self, conversation: Conversation) -> list[int]:
            return change(super().prompt_ids(conversation))

    return Otherwise


# name -> the template that training uses, and chat
TEMPLATE_FAULTS: dict[str, Callable[[Any], ChatGLMTemplate]] = {
    "chat without the role of the assistant": _asking(lambda ids: ids[:-1]),
    "one extra line break in chat": _asking(lambda ids: [*ids, 13]),
    "chat without the prefix of the model": _asking(lambda ids: ids[2:]),
    "chat with the prefix twice": _asking(lambda ids: [*ids[:2], *ids]),
    "another token in the prompt of chat": _asking(lambda ids: [*ids[:-1], 5, ids[-1]]),
    "chat that forgets the question": _asking(lambda ids: [*ids[:3], ids[-1]]),
}


def _mask(part: MicroBatch) -> MicroBatch:
    whole = torch.tensor([0, part.input_ids.size(1)], dtype=torch.int32)
    return replace(part, cu_seq_lens=whole)


def _positions(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[MicroBatch], MicroBatch]:
    def plant(part: MicroBatch) -> MicroBatch:
        assert part.position_ids is not None
        return replace(part, position_ids=change(part.position_ids))

    return plant


def _labels(change: Callable[[MicroBatch], torch.Tensor]) -> Callable[[MicroBatch], MicroBatch]:
    return lambda part: replace(part, labels=change(part))


def _without_stop(part: MicroBatch) -> torch.Tensor:
    labels = part.labels.clone()
    labels[0, -1] = IGNORE
    return labels


# name -> what is done to a pack
PACK_FAULTS: dict[str, Callable[[MicroBatch], MicroBatch]] = {
    "rows of a pack that see each other": _mask,
    "a pack without a mask": lambda part: replace(part, cu_seq_lens=None),
    "positions that are all 0": _positions(torch.zeros_like),
    # Positions that go on from row to row are no fault: rotary embeddings see differences alone.
    "positions that count by two": _positions(lambda ids: 2 * ids),
    "positions that run backwards": _positions(lambda ids: ids.flip(-1)),
    "loss on the prompts too": _labels(lambda part: part.input_ids),
    "no label on the end of the last answer": _labels(_without_stop),
    "labels moved by one token": _labels(lambda part: part.labels.roll(1, -1)),
}
