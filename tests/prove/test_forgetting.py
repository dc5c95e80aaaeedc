"""General rows before and after: what is forgotten is seen, and learning more of them helps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.model.load import load_model, load_tokenizer
from glmtune.prove.forgetting import check_forgetting, general_conversations, general_loss
from glmtune.prove.proof import FORGETS
from glmtune.recipe.choices import LAYOUTS
from glmtune.template.select import template_for

CPU = torch.device("cpu")


def test_half_of_the_general_rows_are_chinese_and_no_two_are_alike() -> None:
    rows = general_conversations()

    texts = [row.messages[0].content for row in rows]
    assert len(set(texts)) == len(rows) == 24
    assert sum(any("\u4e00" <= char <= "\u9fff" for char in text) for text in texts) == 12
    assert all(row.messages[1].content for row in rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_on_general_rows_is_a_mean_over_all_their_answers(
    tiny_model_dir: Path, layout: Any
) -> None:
    template = template_for(load_tokenizer(str(tiny_model_dir)), layout)
    model = load_model(str(tiny_model_dir), attn_implementation="packed").train()

    examples = template.encode_batch(list(general_conversations()))
    loss = general_loss(model, examples, CPU)

    assert model.training  # as it was
    with torch.no_grad():
        losses = [
            model(torch.tensor([each.input_ids]), labels=torch.tensor([each.labels])).loss.item()
            for each in examples
        ]
    counts = [sum(label != -100 for label in each.labels[1:]) for each in examples]
    mean = sum(a * b for a, b in zip(losses, counts, strict=True)) / sum(counts)
    assert loss == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "expected_detail"),
    [
        (1.3, 1.4, "passed", "1.300 nats per token before, 1.400 after, on 24 general rows"),
        (1.3, 0.9, "passed", "0.900 after"),
        (1.3, 1.9, "failed", "rose by more than 0.5. Lower training.learning_rate"),
        (1.3, math.nan, "failed", "rose by more than 0.5"),
        (7.0, 9.0, "not run", "guessing costs 6.908, so the base had nothing to forget"),
    ],
)
def test_the_verdict_is_about_the_rise(
    before: float, after: float, verdict: str, expected_detail: str
) -> None:
    proof = check_forgetting(before, after, 0.5, num_rows=24, vocab_size=1000)

    assert (proof.name, proof.verdict) == (FORGETS, verdict)
    assert expected_detail in proof.detail
