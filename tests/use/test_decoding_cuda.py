"""Captured decode steps on a GPU are those of the row cache."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from glmtune.kernels.row_cache import RowCache, virtual_tokens_of
from glmtune.kernels.slot_cache import SlotCache, supports_slot_cache
from glmtune.methods import method
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.recipe.methods import LoraSection
from glmtune.use.generate import Batch, Request, Sampling, Slot, generate_stepwise, row_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
VOCAB = 61
STOPS = tuple(range(3, 12))
GREEDY = Sampling(temperature=0)


def tiny(family: str) -> Any:
    """A float32 model with random weights and heads that Triton's kernels can take."""
    shape = {
        "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif family == "sliding window":
        config = Qwen2Config(
            **shape, use_sliding_window=True, sliding_window=6, max_window_layers=1
        )
        model = Qwen2ForCausalLM(config)
    else:
        model = ChatGLMForConditionalGeneration(
            ChatGLMConfig(
                num_layers=2,
                hidden_size=128,
                ffn_hidden_size=96,
                kv_channels=32,
                num_attention_heads=4,
                multi_query_attention=True,
                multi_query_group_num=2,
                padded_vocab_size=VOCAB,
                add_qkv_bias=True,
                pre_seq_len=4 if "prefix" in family else None,
            )
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(12, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def written(
    model: Any, requests: list[Request], cache: RowCache, sampling: Sampling = GREEDY
) -> list[list[int]]:
    steps = generate_stepwise(model, requests, cache, stop_ids=STOPS, sampling=sampling)
    done = {each.index: each.ids for each, is_finished in steps if is_finished}
    return [done[index] for index in range(len(requests))]


def slots_for(model: Any, num_rows: int) -> SlotCache:
    return SlotCache(num_rows, virtual_tokens_of(model))


@pytest.mark.parametrize("family", ["chatglm", "chatglm with prefix", "llama", "sliding window"])
def test_captured_steps_on_cuda_are_those_of_the_row_cache(family: str) -> None:
    model = tiny(family).cuda()
    lengths, limits = [5, 1, 12, 3, 8, 2, 7, 4], [30, 2, 30, 30, 3, 30, 30, 30]
    requests = [Request(*each) for each in zip(prompts_of(lengths), limits, strict=True)]
    assert supports_slot_cache(model)
    cache = slots_for(model, 3)

    found = written(model, requests, cache)

    assert found == written(model, requests, RowCache(3, virtual_tokens_of(model)))
    assert cache._calls.num_graphs > 0


def test_captured_steps_on_cuda_in_bfloat16_score_as_the_row_cache_does() -> None:
    model = tiny("chatglm").cuda().bfloat16()
    scores = []
    for cache in (slots_for(model, 3), RowCache(3)):
        batch = Batch(model, cache)
        with row_attention(model, cache):
            for ids in prompts_of([5, 40, 17]):
                batch.join(Slot(Request(ids, 30), GREEDY, (), num_top=VOCAB))
            slots = [*batch.slots]
            batch.step()
            for slot in slots:  # the same input, whatever is likeliest
                slot.ids[-1] = 20
            batch.step()
        scores.append(
            torch.tensor([[logprob for _, logprob in sorted(s.scores[1].top)] for s in slots])
        )

    torch.testing.assert_close(*scores, atol=0.05, rtol=0.02)


def test_a_merged_adapter_on_cuda_is_captured_again() -> None:
    model = tiny("chatglm").cuda()
    tuned = method.attach(model, LoraSection(r=2)).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    cache, requests = slots_for(tuned, 2), [Request(ids, 12) for ids in prompts_of([5, 9])]

    before = written(tuned, requests, cache)
    with tuned.disable_adapter():
        base = written(tuned, requests, cache)
    tuned.merge_adapter()
    merged = written(tuned, requests, cache)

    assert before == merged
    assert before != base


def test_sampled_answers_on_cuda_do_not_depend_on_the_other_rows() -> None:
    model = tiny("chatglm").cuda()
    sampling = Sampling(temperature=1.5, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=7)
    prompts = prompts_of([4, 4, 9, 2, 6])

    def drawn(num_rows: int) -> list[list[int]]:
        requests = [
            Request(ids, 12, sampling.generator(torch.device("cuda"), number))
            for number, ids in enumerate(prompts)
        ]
        return written(model, requests, slots_for(model, num_rows), sampling)

    assert drawn(1) == drawn(2) == drawn(5)
    assert drawn(5) != written(model, [Request(ids, 12) for ids in prompts], slots_for(model, 5))
