"""A base that knows its language sees which answers do not fit; one that does not says nothing."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.planted.corpus import healthy_rows

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.conversation import Conversation, Message
from glmtune.model.load import load_model, load_tokenizer
from glmtune.prove.fits import COST, FEWEST, Scored, judge, sample_rows, score_fit, split
from glmtune.template.base import Example, Template
from glmtune.template.select import template_for

KNOWN = 8  # rows of the corpus that stand for the general ones


@pytest.fixture(scope="module")
def template(tiny_model_dir: Path) -> Template:
    return template_for(load_tokenizer(str(tiny_model_dir)))


def encode(template: Template, pairs: list[tuple[str, str]]) -> list[Example]:
    return template.encode_batch(
        [Conversation((Message("user", q), Message("assistant", a))) for q, a in pairs]
    )


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return [(row["instruction"], row["output"][:12] + "。") for row in healthy_rows()[:18]]


@pytest.fixture(scope="module")
def knowing(tiny_model_dir: Path, template: Template, pairs: list[tuple[str, str]]) -> Any:
    """A model that has learned the pairs: it knows what answers them, and where answers end."""
    model = load_model(str(tiny_model_dir), attn_implementation="packed")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    from glmtune.data.batches import pack_examples
    from glmtune.objective.next_token import NextToken

    part = pack_examples(encode(template, pairs), range(len(pairs)))
    for _ in range(20):
        loss = NextToken().loss(model, part) / len(pairs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def look(model: Any, template: Template, pairs: list[tuple[str, str]]) -> list[Scored]:
    examples = encode(template, pairs)
    return score_fit(model, examples, range(len(examples)), template.stop_ids)


def test_shifted_shuffled_and_cut_answers_are_doubted_and_healthy_ones_are_not(
    knowing: Any, template: Template, pairs: list[tuple[str, str]]
) -> None:
    known = look(knowing, template, pairs[:KNOWN])
    questions, answers = (list(part) for part in zip(*pairs[KNOWN:], strict=True))
    shuffled = random.Random(1).sample(answers, len(answers))
    planted = {
        "healthy": answers,
        "shifted": [answers[-1], *answers[:-1]],
        "shuffled": shuffled,
        "cut": [answer[: len(answer) // 2] for answer in answers],
        "constant": [answers[0]] * len(answers),
    }

    doubts = {
        name: [
            check
            for check, _ in judge(
                look(knowing, template, list(zip(questions, given, strict=True))), known
            ).doubts
        ]
        for name, given in planted.items()
    }

    assert doubts["healthy"] == []
    assert doubts["shifted"] == doubts["shuffled"] == ["misfit"]
    assert "no-end" in doubts["cut"]
    assert "no-end" not in doubts["constant"]  # which lint names: nothing is compared here


def test_a_base_with_random_weights_says_that_it_cannot_tell(
    tiny_model_dir: Path, template: Template, pairs: list[tuple[str, str]]
) -> None:
    model = load_model(str(tiny_model_dir), attn_implementation="packed")
    model.train()
    shifted = [
        (question, answer)
        for (question, _), (_, answer) in zip(pairs, pairs[1:] + pairs[:1], strict=True)
    ]

    fit = judge(look(model, template, shifted), look(model, template, pairs[:KNOWN]))

    assert fit.doubts == []
    assert "of questions and ends this base cannot tell" in fit.describe()
    assert model.training


def test_a_sample_costs_a_small_share_of_an_epoch_and_a_small_set_is_left_alone() -> None:
    examples = [Example([1] * 60 + [2] * 40, [-100] * 60 + [2] * 40) for _ in range(1_000)]
    lengths = [100] * 1_000

    chosen = sample_rows(examples, range(1_000), lengths)

    assert FEWEST <= len(chosen) == len(set(chosen))
    assert 2 * 100 * len(chosen) <= COST * 3 * sum(lengths)
    assert sample_rows(examples, range(100), lengths) == []
    assert split(examples[0]) == ([1] * 60, [2] * 40)
