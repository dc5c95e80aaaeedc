"""A pack costs what its rows cost alone, or the run does not start."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.conversation import Conversation
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.errors import TrainingError
from glmtune.kernels.half_precision import widen
from glmtune.model.load import load_model
from glmtune.prove.packed import check_packed
from glmtune.template.base import IGNORE, Example, Template


@pytest.fixture
def examples(
    template: Template, name_lesson: Conversation, weather_lesson: Conversation
) -> list[Example]:
    return [template.encode(each) for each in (name_lesson, weather_lesson, name_lesson)]


def seeing_each_other(part: MicroBatch) -> MicroBatch:
    return replace(part, cu_seq_lens=torch.tensor([0, part.input_ids.size(1)], dtype=torch.int32))


def without_a_mask(part: MicroBatch) -> MicroBatch:
    return replace(part, cu_seq_lens=None)


def at_position_zero(part: MicroBatch) -> MicroBatch:
    assert part.position_ids is not None
    return replace(part, position_ids=torch.zeros_like(part.position_ids))


def with_prompts_learned(part: MicroBatch) -> MicroBatch:
    return replace(part, labels=part.input_ids)


def without_the_last_label(part: MicroBatch) -> MicroBatch:
    labels = part.labels.clone()
    labels[0, -1] = IGNORE
    return replace(part, labels=labels)


FAULTS = (
    seeing_each_other, without_a_mask, at_position_zero, with_prompts_learned,
    without_the_last_label,
)  # fmt: skip


@pytest.mark.parametrize("base", ["float32", "bfloat16", "widened"])
@pytest.mark.parametrize("folder", ["tiny_model_dir", "taught_model_dir"])
def test_faults_of_a_pack_are_caught_and_healthy_ones_pass(
    folder: str, base: str, examples: list[Example], request: pytest.FixtureRequest
) -> None:
    dtype = torch.float32 if base == "float32" else torch.bfloat16
    path: Path = request.getfixturevalue(folder)
    model: Any = load_model(path, dtype=dtype, attn_implementation="packed")
    if base == "widened":
        widen(model)
    part = pack_examples(examples, range(3))
    model.train()

    healthy = check_packed(model, part, examples)
    assert (healthy.verdict, "3 rows cost" in healthy.detail) == ("passed", True)
    assert model.training

    for fault in FAULTS:
        with pytest.raises(TrainingError, match="see each other, or their positions or labels"):
            check_packed(model, fault(part), examples)
