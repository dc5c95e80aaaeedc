"""A base that knows its language sees which answers do not fit; one that does not says nothing."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.planted.corpus import healthy_rows

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.conversation import Conversation, Message
from glmtune.data.batches import pack_examples
from glmtune.model.load import load_model, load_tokenizer
from glmtune.objective.next_token import NextToken
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


Change = Callable[[list[str]], list[str]]
# name -> what happens to the answers, and the check that must doubt them
FAULTS: dict[str, tuple[Change, str]] = {
    "answers moved by a row, to the base": (lambda a: [a[-1], *a[:-1]], "misfit"),
    "answers shuffled, to the base": (lambda a: random.Random(1).sample(a, len(a)), "misfit"),
    "answers cut in half, to the base": (
        lambda a: [each[: len(each) // 2] for each in a],
        "no-end",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_answers_that_do_not_fit_or_end_are_doubted(
    knowing: Any, template: Template, pairs: list[tuple[str, str]], name: str, record_property: Any
) -> None:
    change, check = FAULTS[name]
    known = look(knowing, template, pairs[:KNOWN])
    questions, answers = (list(part) for part in zip(*pairs[KNOWN:], strict=True))

    found = judge(look(knowing, template, [*zip(questions, change(answers), strict=True)]), known)

    assert [each for each, _ in found.doubts] == [check]
    record_property("said", f"{check}: {found.doubts[0][1]}")


@pytest.mark.parametrize("is_constant", [False, True])
def test_answers_that_fit_and_those_that_cannot_be_compared_are_not_doubted(
    knowing: Any, template: Template, pairs: list[tuple[str, str]], is_constant: bool
) -> None:
    known, rest = look(knowing, template, pairs[:KNOWN]), pairs[KNOWN:]
    given = [(question, rest[0][1]) for question, _ in rest] if is_constant else rest

    assert judge(look(knowing, template, given), known).doubts == []


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
