"""Rows that are written together are written as alone, whatever the model family."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from glmtune.errors import CheckpointError
from glmtune.kernels.row_cache import ROOM, RowCache
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.use.generate import (
    Batch,
    Completion,
    Request,
    Sampling,
    Slot,
    generate,
    generate_stepwise,
    make_cache,
    row_attention,
)

VOCAB = 61
STOPS = tuple(range(3, 12))  # of 61 random tokens: some answers end by themselves before 30
GREEDY = Sampling(temperature=0)
WINDOW = 6


def glm(**kwargs: Any) -> ChatGLMConfig:
    return ChatGLMConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=48, kv_channels=8,
        num_attention_heads=4, multi_query_attention=True, multi_query_group_num=2,
        padded_vocab_size=VOCAB, add_qkv_bias=True, **kwargs,
    )  # fmt: skip


def tiny(family: str) -> Any:
    """A float32 model with random weights, whose tokens are not nearly equally likely."""
    shape = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif family == "sliding window":
        config = Qwen2Config(
            **shape, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        )
        assert config.layer_types == ["full_attention", "sliding_attention"]
        model = Qwen2ForCausalLM(config)
    else:
        model = ChatGLMForConditionalGeneration(glm(pre_seq_len=4 if "prefix" in family else None))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


MODELS = {
    family: tiny(family) for family in ("chatglm", "chatglm with prefix", "llama", "sliding window")
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(12, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def answers(
    model: Any, requests: list[Request], num_rows: int, sampling: Sampling = GREEDY
) -> list[Completion]:
    written = generate(model, requests, stop_ids=STOPS, sampling=sampling, batch_size=num_rows)
    return sorted(written, key=lambda each: each.index)


def by_transformers(model: Any, request: Request) -> list[int]:
    """What transformers' own generation writes, one prompt at a time."""
    sequence = model.generate(
        torch.tensor([request.ids]),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=list(STOPS),
        pad_token_id=0,
    )
    return sequence[0, len(request.ids) :].tolist()


@settings(max_examples=15, deadline=None)
@given(
    family=st.sampled_from(sorted(MODELS)),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    limits=st.lists(st.integers(1, 30), min_size=9, max_size=9),
    num_rows=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_rows_written_together_are_those_that_transformers_writes_alone(
    family: str, lengths: list[int], limits: list[int], num_rows: int, seed: int
) -> None:
    model = MODELS[family]
    requests = [
        Request(ids, limit) for ids, limit in zip(prompts_of(lengths, seed), limits, strict=False)
    ]

    written = answers(model, requests, num_rows)

    assert [each.index for each in written] == list(range(len(requests)))
    assert [each.ids for each in written] == [by_transformers(model, r) for r in requests]


@pytest.mark.parametrize("family", ["chatglm", "llama", "sliding window"])
def test_rows_take_turns_and_some_end_by_themselves(family: str) -> None:
    """Or the test above would say little."""
    model = MODELS[family]
    lengths, limits = [5, 1, 12, 3, 8, 2, 7, 4], [30, 2, 30, 30, 3, 30, 30, 30]
    requests = [Request(*each) for each in zip(prompts_of(lengths), limits, strict=True)]

    completions = generate(model, requests, stop_ids=STOPS, sampling=GREEDY, batch_size=3)
    order = [each.index for each in completions]
    ended = [each.has_ended for each in answers(model, requests, 3)]

    assert sorted(order) == list(range(8))
    assert order != sorted(order)
    assert any(ended)


def test_more_rows_take_fewer_steps() -> None:
    model = MODELS["llama"]
    requests = [Request(ids, 10) for ids in prompts_of([4] * 8)]
    steps = []
    handle = model.register_forward_pre_hook(lambda *_: steps.append(1))
    try:
        list(generate(model, requests, stop_ids=(), sampling=GREEDY, batch_size=4))
    finally:
        handle.remove()

    assert len(steps) == 20  # and not 80: eight answers of ten tokens, four at a time


def test_a_long_row_outgrows_the_initial_cache() -> None:
    for family in ("chatglm", "llama"):
        model = MODELS[family]
        requests = [Request(ids, 12) for ids in prompts_of([3, ROOM - 6])]

        written = answers(model, requests, 2)

        assert [each.ids for each in written] == [by_transformers(model, r) for r in requests]
        assert len(requests[1].ids) + len(written[1].ids) > ROOM


def test_sampled_answers_do_not_depend_on_the_other_rows_of_the_batch(model: Any) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=7)

    def drawn(num_rows: int) -> list[list[int]]:
        requests = [
            Request(ids, 12, sampling.generator(torch.device("cpu"), number))
            for number, ids in enumerate(prompts_of([4, 4, 9, 2, 6]))
        ]
        return [each.ids for each in answers(model, requests, num_rows, sampling)]

    assert drawn(1) == drawn(2) == drawn(5)
    assert drawn(5) != [each.ids for each in answers(model, requests_of(), 5)]


def requests_of() -> list[Request]:
    return [Request(ids, 12) for ids in prompts_of([4, 4, 9, 2, 6])]


def test_a_repetition_penalty_counts_for_greedy_answers_too() -> None:
    model = MODELS["llama"]
    requests = [Request(ids, 25) for ids in prompts_of([4, 6])]

    plain = list(generate(model, requests, stop_ids=(), sampling=GREEDY))
    penalised = list(
        generate(
            model, requests, stop_ids=(), sampling=Sampling(temperature=0, repetition_penalty=5.0)
        )
    )

    def repeats(each: Completion) -> int:
        return len(each.ids) - len(set(each.ids))

    assert sum(map(repeats, penalised)) < sum(map(repeats, plain))


def test_prompts_are_read_only_when_there_is_room() -> None:
    taken = []

    def requests() -> Iterator[Request]:
        for ids in prompts_of([3] * 10):
            taken.append(ids)
            yield Request(ids, 5)

    first = next(generate(MODELS["llama"], requests(), stop_ids=(), sampling=GREEDY, batch_size=2))

    assert first.index == 0
    assert len(taken) == 2


def test_generating_leaves_the_model_unchanged(model: Any) -> None:
    before = model.config._attn_implementation
    model.train()
    try:
        list(generate(model, requests_of(), stop_ids=STOPS, sampling=GREEDY))
        assert (model.training, model.config._attn_implementation) == (True, before)
    finally:
        model.eval()


def test_keys_and_values_of_a_beginning_are_not_computed_again() -> None:
    model = MODELS["chatglm"]
    [ids] = prompts_of([10])
    cache = make_cache(model)
    requests = [Request(ids, 6)]
    [*_, (first, _)] = generate_stepwise(model, requests, cache, stop_ids=(), sampling=GREEDY)
    longer = [*ids, *first.ids[:-1], 20, 21, 22]
    fed: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: fed.append(kwargs["input_ids"].size(1)), with_kwargs=True
    )
    try:
        request = Request(longer, 6, num_cached=len(longer) - 3)
        [*_, (second, _)] = generate_stepwise(model, [request], cache, stop_ids=(), sampling=GREEDY)
    finally:
        handle.remove()

    assert fed == [3, 1, 1, 1, 1, 1]
    assert second.ids == by_transformers_without_stops(model, longer, 6)


def by_transformers_without_stops(model: Any, ids: list[int], max_new_tokens: int) -> list[int]:
    model.generation_config.eos_token_id = None
    sequence = model.generate(
        torch.tensor([ids]), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
    )
    return sequence[0, len(ids) :].tolist()


def test_a_prefix_is_the_beginning_of_every_row() -> None:
    model = MODELS["chatglm with prefix"]
    cache = make_cache(model, 8)

    assert isinstance(cache, RowCache)
    assert cache.get_seq_length() == 4
    fed = cache.feed([0, 3], [2, 1], "cpu")
    assert fed["position_ids"].tolist() == [[0, 1, 3]]  # it takes no position
    assert fed["slots"].pasts == (4, 7)


def test_scores_that_are_not_finite_are_an_error_and_no_answer() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")

    with pytest.raises(CheckpointError, match=r"token 1 of the answer are not finite, in torch\."):
        list(generate(model, requests_of(), stop_ids=STOPS, sampling=GREEDY))


def test_a_finished_row_does_not_affect_the_row_that_takes_its_slot() -> None:
    """Were unused keys not zero, or a slot not cleared by its mask, the second would differ."""
    model = MODELS["llama"]
    requests = [
        Request(ids, limit) for ids, limit in zip(prompts_of([20, 2, 3]), (3, 25, 25), strict=True)
    ]

    together = answers(model, requests, 2)

    assert [w.ids for w in together] == [w.ids for w in answers(model, requests, 1)]


@pytest.mark.parametrize(
    ("dtype", "num_rows", "expected"),
    [
        (torch.bfloat16, 1, [True, False, False, False]),
        (torch.bfloat16, 2, [True, True, True, True]),
        (torch.float32, 1, [True, True, True, True]),
    ],
)
def test_a_single_row_of_bfloat16_is_multiplied_by_the_kernel_that_reads_weights_faster(
    dtype: torch.dtype, num_rows: int, expected: list[bool]
) -> None:
    model = copy.deepcopy(MODELS["chatglm"]).to(dtype)
    library_was_used = []
    handle = model.register_forward_pre_hook(
        lambda *_: library_was_used.append(torch.backends.mkldnn.enabled)
    )
    requests = [Request(ids, 4) for ids in prompts_of([5] * num_rows)]

    list(generate(model, requests, stop_ids=(), sampling=GREEDY, batch_size=num_rows))
    handle.remove()

    assert library_was_used == expected  # of the prompt, and of the three tokens after the first
    assert torch.backends.mkldnn.enabled


def test_onednn_is_restored_after_a_failure() -> None:
    model = copy.deepcopy(MODELS["chatglm"]).to(torch.bfloat16)
    calls = []

    def fail_at_the_third(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail_at_the_third)

    with pytest.raises(KeyboardInterrupt):
        list(generate(model, [Request([1, 2], 9)], stop_ids=(), sampling=GREEDY, batch_size=1))

    assert torch.backends.mkldnn.enabled


def test_every_seed_of_64_bits_makes_sampling_repeatable() -> None:
    for seed in (0, 2**63, 2**64 - 1):
        first, second, third = (
            torch.rand(3, generator=Sampling(seed=seed).generator(torch.device("cpu"), number))
            for number in (1, 1, 2)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


# ---- a batch that sequences join and leave at any time ------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    family=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 1000),
    batch_size=st.integers(1, 4),
    num_kept=st.integers(0, 3),
    prompt_tokens=st.sampled_from([None, 20]),
)
def test_sequences_that_join_leave_and_come_back_are_those_that_transformers_writes_alone(
    family: str, seed: int, batch_size: int, num_kept: int, prompt_tokens: int | None
) -> None:
    """Some begin as others do, some leave for a while, and long prompts are computed in parts."""
    draw, model = random.Random(seed), MODELS[family]
    beginning, other = prompts_of([30, 8], seed)
    ends = prompts_of([draw.randint(1, 40) for _ in range(6)], seed + 1)
    requests = [Request((beginning if draw.random() < 0.6 else other) + end, 8) for end in ends]
    cache = make_cache(model, batch_size + num_kept)
    batch = Batch(model, cache, batch_size, prompt_tokens=prompt_tokens)
    waiting = [Slot(request, GREEDY, STOPS, index) for index, request in enumerate(requests)]
    slots = [*waiting]

    with row_attention(model, cache):
        while waiting or batch.slots:
            while waiting and batch.num_free:
                batch.join(waiting.pop(0))
            batch.step()
            for slot in [*batch.slots]:
                if slot.is_finished or draw.random() < 0.15:
                    batch.leave(slot)
                    waiting += [] if slot.is_finished else [slot]

    assert [slot.completion for slot in slots] == [by_transformers(model, r) for r in requests]


def test_a_sequence_copies_the_longest_beginning_that_a_row_still_holds() -> None:
    model = MODELS["llama"]
    cache = make_cache(model, 3)
    batch = Batch(model, cache, 1)
    long, short = prompts_of([20, 5], seed=3)
    reused = []
    with row_attention(model, cache):
        for ids in (long, [*long[:12], *short], short, [*long, *short], [*long, *short]):
            slot = Slot(Request(ids, 1), GREEDY, ())
            batch.join(slot)
            reused.append(slot.num_cached)
            batch.step()
            batch.leave(slot)

    assert reused == [0, 12, 0, 20, 24]  # one token at least is computed


def test_a_penalty_makes_tokens_of_the_completion_less_likely() -> None:
    model = MODELS["llama"]

    def repeats(**penalties: float) -> int:
        sampling = Sampling(temperature=0, **penalties)
        [each] = generate(model, [Request([5, 6], 25)], stop_ids=(), sampling=sampling)
        return len(each.ids) - len(set(each.ids))

    plain = repeats()
    assert plain > repeats(presence_penalty=2.0)
    assert plain > repeats(frequency_penalty=2.0)
    assert repeats(presence_penalty=100.0) == 0
