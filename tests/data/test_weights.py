"""Weights of answers, and prompts that are learned: from the row to the loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.template.conversations import talk
from tests.template.fast_tokenizers import CHATML, fast_tokenizer

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.conversation import Conversation, Message
from glmtune.data.batches import MicroBatch, micro_batch_of
from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.formats import convert_labeled, convert_pair, detect
from glmtune.data.learned_prompt import LearnedPrompt
from glmtune.data.packing import pack
from glmtune.data.rows import Row, RowError
from glmtune.errors import RecipeError
from glmtune.model.load import load_model, load_tokenizer
from glmtune.objective.next_token import NextToken, next_token_loss
from glmtune.prove.answers import first_prompt
from glmtune.prove.packed import check_packed
from glmtune.recipe.choices import LAYOUTS, Layout
from glmtune.recipe.reading import build_recipe
from glmtune.template.base import IGNORE, Example, Template
from glmtune.template.chat_template import ChatTemplate
from glmtune.template.select import template_for

OPTIONS = EncodeOptions(max_length=200)
QUESTION = {"role": "user", "content": "北京在哪里"}


def answer(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def template_of(folder: Path, layout: str) -> Template:
    if layout == "chatml":
        return ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    return template_for(load_tokenizer(folder), layout)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [*LAYOUTS, "chatml"])
def test_a_weight_is_that_of_the_answer_and_of_the_token_that_ends_it(
    tiny_model_dir: Path, layout: Layout
) -> None:
    template = template_of(tiny_model_dir, layout)
    plain = talk(("user", "北京在哪里"), ("assistant", "在华北。"))
    weighed = talk(plain.messages[0], replace(plain.messages[1], is_learned=0.25))

    expected, [found] = template.encode(plain), template.encode_batch([weighed])

    assert expected.weights is None
    assert (found.input_ids, found.labels) == (expected.input_ids, expected.labels)
    assert found.weights is not None
    pairs = zip(found.labels, found.weights, strict=True)
    assert {weight for label, weight in pairs if label != IGNORE} == {0.25}


@pytest.mark.parametrize("layout", ["official", "chatml"])
def test_two_answers_have_weights_of_their_own(tiny_model_dir: Path, layout: str) -> None:
    template = template_of(tiny_model_dir, layout)
    turns = [("user", "一"), Message("assistant", "二", is_learned=0.5), ("user", "三")]
    first = template.encode(talk(*turns[:2], Message("user", "三")))  # type: ignore[arg-type]

    example = template.encode(talk(*turns, Message("assistant", "四", is_learned=3.0)))  # type: ignore[arg-type]

    assert example.weights is not None
    starts = [i for i, label in enumerate(example.labels) if label != IGNORE]
    cut = sum(label != IGNORE for label in first.labels)
    found = [example.weights[i] for i in starts]
    assert found == [0.5] * cut + [3.0] * (len(starts) - cut)


def rows_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def test_stored_weights_are_read_back_and_decide_the_fingerprint(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    template = template_of(tiny_model_dir, "official")
    plain = {"messages": [QUESTION, answer("在华北。")]}
    weighed = {"messages": [QUESTION, answer("在华北。", loss_scale=0.5)]}

    def encode(*rows: dict[str, Any], name: str = "rows.json") -> Any:
        path = rows_of(tmp_path / name, list(rows))
        return encode_data(path, template, OPTIONS, cache_dir=tmp_path / "cache")

    mixed, same = encode(plain, weighed), encode(plain, plain, name="same.json")

    assert mixed[0].weights is None
    assert set(mixed[1].weights) == {0.0, 0.5}
    assert mixed[0].input_ids == mixed[1].input_ids
    assert mixed.content_fingerprint != same.content_fingerprint
    assert mixed.followed_by(same)[1].weights == mixed[1].weights
    part = micro_batch_of(pack(list(mixed)))
    assert part.weights is not None
    assert part.weights.shape == part.labels.shape
    assert micro_batch_of(pack(list(same))).weights is None


def batch(*examples: Example) -> MicroBatch:
    return micro_batch_of(pack(list(examples)), rows=range(len(examples)))


def test_a_weight_of_two_counts_an_answer_twice(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, attn_implementation="packed").eval()
    one = Example([3, 4, 5, 9, 2], [IGNORE] * 3 + [9, 2])
    other = Example([11, 12, 20, 21, 2], [IGNORE] * 2 + [20, 21, 2])
    doubled = replace(one, weights=[0.0] * 3 + [2.0] * 2)
    objective = NextToken()

    twice = objective.loss(model, batch(one, one, other)) / objective.count(batch(one, one, other))
    weighed = objective.loss(model, batch(doubled, other)) / objective.count(batch(doubled, other))
    wanted = torch.autograd.grad(twice, model.transformer.output_layer.weight)
    found = torch.autograd.grad(weighed, model.transformer.output_layer.weight)

    torch.testing.assert_close(weighed, twice, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0], wanted[0], atol=1e-6, rtol=1e-4)
    assert objective.count(batch(replace(one, weights=[0.0] * 3 + [0.25] * 2))) == 0.5
    mixed = batch(doubled, replace(other, weights=[0.0] * 2 + [0.5] * 3))
    alone = 2 * next_token_loss(model, batch(one)) + 0.5 * next_token_loss(model, batch(other))
    torch.testing.assert_close(next_token_loss(model, mixed), alone, atol=1e-4, rtol=1e-5)
    proof = check_packed(model, mixed, [doubled, other])
    assert proof.verdict == "passed"


def test_a_weight_is_refused_where_answers_are_compared() -> None:
    turns = [QUESTION, answer("a", weight=0.5)]
    row = Row({"messages": turns, "label": True}, "rows.jsonl", 3)
    with pytest.raises(RowError, match=r"rows.jsonl:3.*only preference\.stage=sft knows"):
        convert_labeled(row, detect([row]))
    row = Row({"messages": turns, "rejected_response": "b"}, "rows.jsonl", 3)
    with pytest.raises(RowError, match="Take the weight out"):
        convert_pair(row, detect([row]))


@pytest.mark.parametrize("layout", [*LAYOUTS, "chatml"])
def test_a_learned_prompt_is_a_label_and_the_answer_is_still_found(
    tiny_model_dir: Path, layout: Layout
) -> None:
    template = template_of(tiny_model_dir, layout)
    tokenizer = template._tokenizer  # type: ignore[attr-defined]
    row = talk(("user", "北京在哪里"), ("assistant", "在华北。"))

    example = LearnedPrompt(template).encode(row)

    assert example.input_ids == template.encode(row).input_ids
    assert example.labels == [IGNORE, *example.input_ids[1:]]
    asked = first_prompt(example, template, tokenizer)
    assert list(asked.ids) == template.prompt_ids(Conversation(row.messages[:1]))
    assert asked == first_prompt(template.encode(row), template, tokenizer)
    assert LearnedPrompt(template).fingerprint == template.fingerprint


def test_the_first_of_several_answers_ends_where_the_next_question_begins(
    tiny_model_dir: Path,
) -> None:
    template = template_of(tiny_model_dir, "official")
    row = talk(("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四四"))
    tokenizer = load_tokenizer(tiny_model_dir)

    asked = first_prompt(LearnedPrompt(template).encode(row), template, tokenizer)

    assert asked == first_prompt(template.encode(row), template, tokenizer)
    assert asked.expected == "二"


def test_an_answer_that_is_left_out_stays_so_and_weights_of_others_too(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    template = template_of(tiny_model_dir, "official")
    turns = [QUESTION, answer("不对。", loss=False), QUESTION, answer("在华北。", weight=0.5)]
    path = rows_of(tmp_path / "rows.json", [{"messages": turns}])
    options = replace(OPTIONS, train_on_prompt=True)

    [example] = encode_data(path, template, options, cache_dir=tmp_path / "cache")

    only_bad = talk(
        ("user", "北京在哪里"), Message("assistant", "不对。"), ("user", "北京在哪里"),
        Message("assistant", "在华北。", is_learned=False),
    )  # fmt: skip
    bad = [label != IGNORE for label in template.encode(only_bad).labels]
    assert [label == IGNORE for label in example.labels[1:]] == bad[1:]
    assert example.weights is not None
    only_good = talk(
        ("user", "北京在哪里"), Message("assistant", "不对。", is_learned=False),
        ("user", "北京在哪里"), ("assistant", "在华北。"),
    )  # fmt: skip
    answers = template.encode(only_good)
    for label, weight in zip(answers.labels, example.weights, strict=True):
        assert weight == (1.0 if label == IGNORE else 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [("data.mask_history=true", "Leave one of them out"), ("stage=kto", "compares answers alone")],
)
def test_what_leaves_no_prompt_to_learn_is_refused(change: str, message: str) -> None:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "a"}, "output": {"dir": "o"}}
    with pytest.raises(RecipeError, match=message):
        build_recipe(tree, ["data.train_on_prompt=true", change])
