"""Blank infilling: the published vectors, and what holds for every text."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glmtune.kernels.packed_attention  # noqa: F401
from glmtune.data.batches import MicroBatch
from glmtune.errors import DataError
from glmtune.kernels.packed_attention import dense_mask
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.load import load_tokenizer
from glmtune.objective.blank_infilling import (
    BlankInfilling,
    Draw,
    Ids,
    Infilling,
    Marks,
    cut_off,
    cut_out,
    in_one_dimension,
    marks_of,
    num_free_tokens,
    pack_infillings,
    place_spans,
    span_weights,
)
from glmtune.recipe.sections import ObjectiveSection
from glmtune.template.base import IGNORE

VOCAB = 50
END, STOP = 2, 7  # a document's end; a token that ends a sentence
MARKS = Marks(
    mask=40, sentence_mask=41, document_mask=42, sop=43, eop=44, end=END,
    ends_sentence=np.arange(VOCAB) == STOP,
)  # fmt: skip
MASKS = (40, 41, 42)
PUBLISHED_IDS = Marks(64789, 64791, 64790, 64792, 64793, 2, np.zeros(64798, dtype=bool))
ENC = 64798  # in the published batches, in front of each text and never cut

plain_tokens = st.integers(3, 39)
texts = st.lists(plain_tokens, min_size=1, max_size=80).map(np.array)
texts_of_documents = st.lists(
    st.one_of(plain_tokens, st.just(END)), min_size=1, max_size=80
).map(np.array)  # fmt: skip
levels = st.sampled_from(["token", "sentence", "document", "causal"])
flags = st.booleans()


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, Any]:
    path = golden / "blank_infilling.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def spans_of_b(example: Infilling, marks: Marks = MARKS) -> list[tuple[int, list[int]]]:
    """Read back what B fills: the position of the mask, and the tokens learned there."""
    starts = [i for i, token in enumerate(example.input_ids) if token == marks.sop]
    return [
        (int(example.position_ids[a]), example.targets[a:b].tolist())
        for a, b in pairwise([*starts, len(example)])
    ]


def fill(example: Infilling, marks: Marks = MARKS) -> list[int]:
    """Put what is learned in B back in place of the masks of A."""
    filled = {
        where: [t for t in span if t != marks.eop] for where, span in spans_of_b(example, marks)
    }
    text: list[int] = []
    for position, token in enumerate(example.input_ids[: example.prefix_length].tolist()):
        text += filled.pop(position, [token])
    assert not filled
    return text


# The published vectors


def test_given_spans_give_the_published_examples(published: dict[str, Any]) -> None:
    masks = {"[MASK]": 64789, "[gMASK]": 64790, "[sMASK]": 64791}
    for case in published["given_spans"]:
        made = cut_out(
            np.array(case["tokens"]), np.array(case["span_order"]), masks[case["task"]],
            PUBLISHED_IDS,
        )  # fmt: skip

        assert made.input_ids.tolist() == case["input_ids"]
        assert made.position_ids.tolist() == case["position_ids"]
        assert made.block_position_ids.tolist() == case["block_position_ids"]
        assert made.prefix_length == case["sep"]
        learned = zip(case["targets"], case["loss_mask"], strict=True)
        assert made.targets.tolist() == [t if is_learned else IGNORE for t, is_learned in learned]


def test_given_draws_place_the_published_spans(published: dict[str, Any]) -> None:
    for case in published["span_placement"]:
        lengths, draws = np.array(case["span_lengths"]), np.array(case["draws"])

        assert num_free_tokens(lengths, case["total_length"]) + 1 == case["upper_bound_exclusive"]
        assert place_spans(lengths, draws, case["offset"]).tolist() == case["spans"]


def test_span_lengths_have_the_published_weights(published: dict[str, Any]) -> None:
    expected = published["meta"]["poisson_weights_1_to_39"]
    np.testing.assert_allclose(span_weights(3, 39), expected, rtol=1e-12)


def test_the_published_batches_are_what_their_spans_give_here(published: dict[str, Any]) -> None:
    """A and B of each row say which spans were cut; cut again, they give the same row."""
    ends = {"bert": 64789, "sentence": 64791, "gpt": 64790}
    num_rows = 0
    for case in published["batch_modes"]:
        mask = ends[case["mode"]]
        for row, text in enumerate(case["texts"]):
            size = case["sep"][row] + sum(case["loss_mask"][row])
            given_row = {
                name: np.array(case[name][row][:size])
                for name in ("input_ids", "targets", "position_ids", "block_position_ids")
            }
            example = Infilling(**given_row, prefix_length=case["sep"][row])
            tokens = np.array(text)
            if case["mode"] == "gpt" and example.targets[-1] != PUBLISHED_IDS.eop:
                made = cut_off(tokens, size - case["sep"][row], mask, PUBLISHED_IDS)
            else:
                made = cut_out(tokens, where_cut(example, mask), mask, PUBLISHED_IDS)

            learned = np.array(case["loss_mask"][row][:size]) == 1
            assert made.input_ids.tolist() == example.input_ids.tolist()
            assert made.targets[learned].tolist() == example.targets[learned].tolist()
            assert set(made.targets[~learned].tolist()) <= {IGNORE}
            assert made.position_ids.tolist() == example.position_ids.tolist()
            assert made.block_position_ids.tolist() == example.block_position_ids.tolist()
            assert fill(made, PUBLISHED_IDS) == text
            num_rows += 1
    assert num_rows == 27


def where_cut(example: Infilling, mask: int) -> Ids:
    """Say which spans of the text were cut, in the order of B."""
    spans = dict(spans_of_b(example, PUBLISHED_IDS))
    starts, at = {}, 0
    for position in range(example.prefix_length):
        starts[position] = at
        at += len(spans[position]) - 1 if position in spans else 1
    for position in spans:
        assert example.input_ids[position] == mask
    cut = [(starts[p], starts[p] + len(span) - 1) for p, span in spans.items()]
    return np.array(cut, dtype=np.int64).reshape(-1, 2)


# What holds for every text


@given(text=texts_of_documents, level=levels, seed=st.integers(0, 999), shuffle=flags, tasks=flags)
def test_every_cut_token_is_learned_once_and_filling_the_blanks_gives_the_text_back(
    text: Ids, level: Any, seed: int, shuffle: bool, tasks: bool
) -> None:
    section = ObjectiveSection(shuffle_spans=shuffle, task_masks=tasks)
    objective = BlankInfilling(section, MARKS)
    draw = Draw(level, length=10)

    example = objective.example(text, draw, np.random.default_rng(seed))

    masks = np.isin(example.input_ids[: example.prefix_length], MASKS).sum()
    learned = [t for t in example.targets.tolist() if t not in (IGNORE, MARKS.eop)]
    assert len(learned) == len(text) - (example.prefix_length - masks)
    if level != "causal":  # which has no positions that say where
        assert fill(example) == text.tolist()
    else:
        assert learned == text.tolist()
    # Each token of B other than a sop is the target of the position before it.
    in_b = np.arange(len(example)) > example.prefix_length
    fed = in_b & (example.input_ids != MARKS.sop)
    assert (example.input_ids[fed] == example.targets[np.flatnonzero(fed) - 1]).all()
    assert (example.targets[: example.prefix_length] == IGNORE).all()


@given(text=texts_of_documents, seed=st.integers(0, 999))
def test_token_spans_do_not_touch_and_are_enough(text: Ids, seed: int) -> None:
    objective = BlankInfilling(ObjectiveSection(), MARKS)

    example = objective.example(text, Draw("token"), np.random.default_rng(seed))

    is_mask = np.isin(example.input_ids[: example.prefix_length], MASKS)
    assert not (is_mask[1:] & is_mask[:-1]).any()
    spans = [span[:-1] for _, span in spans_of_b(example)]
    assert all(span and END not in span for span in spans)
    wanted = int(0.15 * len(text))
    assert not spans or sum(map(len, spans)) >= wanted
    if END not in text and len(text) >= 2 * 39:
        assert spans  # there is room for any


@given(text=texts_of_documents, seed=st.integers(0, 999))
def test_sentences_are_masked_completely(text: Ids, seed: int) -> None:
    objective = BlankInfilling(ObjectiveSection(), MARKS)

    example = objective.example(text, Draw("sentence"), np.random.default_rng(seed))

    cut = sorted(tuple(span[:-1]) for _, span in spans_of_b(example))
    sentences: list[tuple[int, ...]] = []
    sentence: list[int] = []
    for token in [*text.tolist(), END]:
        if token != END:
            sentence.append(token)
        if token in (END, STOP) and sentence:
            sentences.append(tuple(sentence))
            sentence = []
    for each in cut:
        sentences.remove(each)  # each is one of them, and taken once
    assert sum(map(len, cut)) >= min(int(0.15 * len(text)), (text != END).sum())


def test_what_one_sentence_less_would_not_reach_is_not_exceeded() -> None:
    text = np.array([3, 4, 5, 6, STOP] * 8)  # 15 % are 6 of 40 tokens: two sentences
    objective = BlankInfilling(ObjectiveSection(), MARKS)

    example = objective.example(text, Draw("sentence"), np.random.default_rng(0))

    assert len(spans_of_b(example)) == 2


def test_documents_take_spans_from_the_shortest_on_and_the_longest_takes_the_rest() -> None:
    text = np.array([3] * 30 + [END] + [4] * 300 + [END] + [5] * 4 + [END])
    objective = BlankInfilling(ObjectiveSection(), MARKS)

    for seed in range(20):
        example = objective.example(text, Draw("token"), np.random.default_rng(seed))
        cut = [span[:-1] for _, span in spans_of_b(example)]
        assert all(len(set(span)) == 1 for span in cut)  # none crosses a border
        by_document = {d: sum(len(s) for s in cut if s[0] == d) for d in (3, 4, 5)}
        assert by_document[5] == 0  # 15 % of 4 is none
        assert by_document[3] <= int(0.15 * 30)
        assert sum(by_document.values()) >= int(0.15 * len(text))


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_document_level_leaves_two_tokens_and_cuts_as_many_of_every_text(
    lengths: list[int], seed: int
) -> None:
    section = ObjectiveSection(token=0, document=1)
    objective = BlankInfilling(section, MARKS)
    batch = [np.full(length, 9) for length in lengths]

    examples = objective.batch(batch, np.random.default_rng(seed))

    cut = [int((e.targets != IGNORE).sum() - (e.targets[-1] == MARKS.eop)) for e in examples]
    assert all(1 <= c <= max(n - 2, 1) for c, n in zip(cut, lengths, strict=True))
    roomy = {c for c, n in zip(cut, lengths, strict=True) if n - 2 > max(cut)}
    assert roomy <= {max(cut)}
    assert max(cut) >= min(int(0.5 * min(lengths)), max(max(lengths) - 2, 1))


def test_document_level_has_both_forms_and_one_closes_with_eop() -> None:
    objective = BlankInfilling(ObjectiveSection(), MARKS)
    text = np.array([*range(3, 23), END])
    generator = np.random.default_rng(0)

    made = [objective.example(text, Draw("document", 12), generator) for _ in range(200)]

    closes = [int(e.targets[-1]) for e in made]
    assert set(closes) == {END, MARKS.eop}
    assert 60 < closes.count(END) < 140  # p = 0.5: five standard deviations
    for example in made:
        assert END not in example.input_ids[example.prefix_length :]


def test_a_minimum_share_of_one_is_a_causal_language_model() -> None:
    section = ObjectiveSection(token=0, document=1, shortest_document_share=1, prefix_share=1)
    objective = BlankInfilling(section, MARKS)

    [example] = objective.batch([np.array([5, 6, END])], np.random.default_rng(0))

    assert example.input_ids.tolist() == [MARKS.document_mask, MARKS.sop, 5, 6]
    assert example.targets.tolist() == [IGNORE, 5, 6, END]
    assert example.position_ids.tolist() == [0, 0, 0, 0]
    assert example.block_position_ids.tolist() == [0, 1, 2, 3]


def test_the_causal_objective_is_chatglm3s_own_prompt_and_positions() -> None:
    objective = BlankInfilling(ObjectiveSection(token=0, document=0, causal=1), MARKS)

    [example] = objective.batch([np.array([5, 6, END])], np.random.default_rng(0))

    assert example.input_ids.tolist() == [MARKS.document_mask, MARKS.sop, 5, 6]
    assert example.position_ids.tolist() == [0, 1, 2, 3]
    assert example.block_position_ids.tolist() == [0, 0, 0, 0]
    assert pack_infillings([example]).block_position_ids is None


def test_the_mixture_follows_its_weights_and_the_generator_alone() -> None:
    objective = BlankInfilling(ObjectiveSection(token=5, sentence=3, document=2), MARKS)

    def drawn(seed: int) -> list[str]:
        generator = np.random.default_rng(seed)
        return [objective.draw([20], generator).level for _ in range(1000)]

    assert drawn(0) == drawn(0)
    counts = {level: drawn(0).count(level) for level in ("token", "sentence", "document")}
    for level, share in (("token", 500), ("sentence", 300), ("document", 200)):
        assert abs(counts[level] - share) < 80  # five standard deviations


def test_spans_are_shuffled_unless_that_is_off() -> None:
    text = np.array(range(3, 39)).repeat(10)

    def positions(shuffle: bool) -> list[int]:
        objective = BlankInfilling(ObjectiveSection(shuffle_spans=shuffle), MARKS)
        example = objective.example(text, Draw("token"), np.random.default_rng(0))
        return [where for where, _ in spans_of_b(example)]

    assert len(positions(True)) > 8  # or a shuffled order might be sorted by luck
    assert positions(False) == sorted(positions(True))
    assert positions(True) != positions(False)


def test_without_two_dimensions_positions_count_on() -> None:
    objective = BlankInfilling(ObjectiveSection(two_dimensional=False), MARKS)
    example = objective.example(np.arange(3, 39), Draw("token"), np.random.default_rng(0))

    assert example.position_ids.tolist() == list(range(len(example)))
    assert not example.block_position_ids.any()


def test_a_tokenizer_without_the_marks_is_refused() -> None:
    class Llama:
        unk_token_id = 0

        def convert_tokens_to_ids(self, token: str) -> int:
            return 0

    with pytest.raises(DataError, match=r"\[MASK\], \[sMASK\], \[gMASK\], sop, eop"):
        marks_of(Llama())


def test_the_marks_of_chatglm3_are_the_published_ids(golden: Path) -> None:
    tokenizer = load_tokenizer(golden / "chatglm3-tokenizer")
    marks = marks_of(tokenizer)

    assert (marks.mask, marks.sentence_mask, marks.document_mask) == (64789, 64791, 64790)
    assert (marks.sop, marks.eop, marks.end) == (64792, 64793, 2)
    for text in ("。", "a.", "？", "!\n", "；"):
        assert marks.ends_sentence[tokenizer.encode(text, add_special_tokens=False)[-1]]
    assert not marks.ends_sentence[tokenizer.encode("，", add_special_tokens=False)[-1]]


# Packs, and the model


def tiny_model(attention: str = "packed") -> Any:
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=48, kv_channels=8,
        num_attention_heads=4, multi_query_attention=True, multi_query_group_num=2,
        padded_vocab_size=VOCAB, add_qkv_bias=True,
    )  # fmt: skip
    model: Any = ChatGLMForConditionalGeneration._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)  # so that attention is far from uniform
    return model.eval()


MODEL = tiny_model()


def make_pack(lengths: list[int], level: Any, seed: int) -> MicroBatch:
    generator = np.random.default_rng(seed)
    objective = BlankInfilling(ObjectiveSection(), MARKS)
    batch = [generator.integers(3, 40, length) for length in lengths]
    draw = Draw(level, length=max(lengths) // 2)
    return pack_infillings([objective.example(text, draw, generator) for text in batch])


def test_a_pack_closes_with_the_label_of_its_last_token() -> None:
    a = cut_out(np.array([3, 4, 5]), np.array([[1, 2]]), 40, MARKS)  # 3 M 5 sop 4
    b = cut_off(np.array([6, 8]), 1, 42, MARKS)  # 6 M sop

    packed = pack_infillings([a, b], rows=[7, 8])

    assert packed.input_ids.tolist() == [[3, 40, 5, 43, 4, 6, 42, 43, 8]]
    assert packed.labels.tolist() == [[-100, -100, -100, -100, 4, 44, -100, -100, 8]]
    assert packed.cu_seq_lens is not None
    assert packed.cu_seq_lens.tolist() == [0, 5, 9]
    assert packed.prefix_lengths is not None
    assert packed.prefix_lengths.tolist() == [3, 2]
    assert packed.block_position_ids is not None
    assert packed.block_position_ids.tolist() == [[0, 0, 0, 1, 2, 0, 0, 1, 1]]
    assert packed.rows == (7, 8)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    level=levels,
    seed=st.integers(0, 999),
)
def test_a_token_changes_no_logit_of_a_position_that_may_not_see_it(
    lengths: list[int], level: Any, seed: int
) -> None:
    packed = make_pack(lengths, level, seed)
    inputs = packed.inputs()
    may_attend = dense_mask(inputs["cu_seq_lens_q"], inputs["prefix_lengths"])
    with torch.no_grad():
        before = MODEL(**inputs).logits[0]
        for column in range(packed.input_ids.shape[1]):
            other = packed.input_ids.clone()
            other[0, column] = (other[0, column] + 1) % VOCAB
            after = MODEL(**{**inputs, "input_ids": other}).logits[0]
            changed = (after != before).any(-1)
            # Two layers: what sees a token that sees it is changed as well.
            reached = (may_attend.float() @ may_attend.float()[:, column]) > 0
            assert changed.tolist() == reached.tolist()


def test_no_position_of_b_is_reached_by_what_it_has_to_predict() -> None:
    """Seeing is transitive here, so nothing leaks through any number of layers."""
    for level in ("token", "sentence", "document", "causal"):
        packed = make_pack([30, 17], level, seed=3)
        assert packed.cu_seq_lens is not None
        assert packed.prefix_lengths is not None
        sees = dense_mask(packed.cu_seq_lens, packed.prefix_lengths).float()
        assert ((sees @ sees > 0) == (sees > 0)).all()
        assert not sees.triu(1)[(packed.labels[0, 1:] != IGNORE).nonzero()[:, 0]].any()


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    level=levels,
    seed=st.integers(0, 999),
)
def test_a_pack_gives_the_loss_and_the_gradients_of_the_dense_mask(
    lengths: list[int], level: Any, seed: int
) -> None:
    packed = make_pack(lengths, level, seed)
    inputs = packed.inputs()
    mask = dense_mask(inputs["cu_seq_lens_q"], inputs["prefix_lengths"])[None, None]
    dense = {
        name: value
        for name, value in inputs.items()
        if name in ("input_ids", "position_ids", "block_position_ids")
    }
    results = []
    for given_inputs in (inputs, {**dense, "attention_mask": mask}):
        MODEL.zero_grad()
        logits = MODEL(**given_inputs).logits
        (logits * torch.linspace(-1, 1, VOCAB)).sum().backward()
        gradients = [p.grad.clone() for p in MODEL.parameters() if p.grad is not None]
        results.append((logits.detach(), gradients))

    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)


def test_block_positions_of_zero_change_no_bit() -> None:
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        without = MODEL(ids).logits
        zeros = MODEL(ids, block_position_ids=torch.zeros_like(ids)).logits
        ones = MODEL(ids, block_position_ids=torch.arange(20)[None]).logits

    assert torch.equal(without, zeros)
    assert not torch.allclose(without, ones, atol=1e-3)


def test_scores_depend_on_differences_of_both_positions_alone() -> None:
    """As rotary positions do: moving all of either stream by the same step changes nothing."""
    ids = torch.arange(3, 15)[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 2, 2, 2, 4, 4, 4]])
    blocks = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2, 3]])
    with torch.no_grad():
        here = MODEL(ids, position_ids=positions, block_position_ids=blocks).logits
        there = MODEL(ids, position_ids=positions + 5, block_position_ids=blocks + 9).logits
        mixed = MODEL(ids, position_ids=blocks, block_position_ids=positions).logits

    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)
    assert (here - mixed).abs().max() > 1e-3


def test_prefixes_without_a_pack_are_refused() -> None:
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        MODEL(torch.tensor([[3, 4, 5]]), prefix_lengths=torch.tensor([2]))


def test_in_one_dimension_nothing_else_changes() -> None:
    example = cut_out(np.array([3, 4, 5]), np.array([[1, 2]]), 40, MARKS)
    flat = in_one_dimension(example)

    assert flat.input_ids.tolist() == example.input_ids.tolist()
    assert flat.targets.tolist() == example.targets.tolist()
    assert flat.prefix_length == example.prefix_length
