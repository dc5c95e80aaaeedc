"""Packs give what padded batches give, for every model family."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.padding import pad_examples
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from glmtune.data.batches import pack_examples
from glmtune.kernels import packed_attention
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.objective.next_token import next_token_loss
from glmtune.template.base import IGNORE, Example

VOCAB = 61


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )  # fmt: skip
        model: Any = LlamaForCausalLM._from_config(config, attn_implementation="packed")
    else:
        glm = ChatGLMConfig(
            num_layers=2, hidden_size=32, ffn_hidden_size=48, kv_channels=8,
            num_attention_heads=4, multi_query_attention=True, multi_query_group_num=2,
            padded_vocab_size=VOCAB, add_qkv_bias=True,
        )  # fmt: skip
        model = ChatGLMForConditionalGeneration._from_config(glm, attn_implementation="packed")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)  # so that attention is far from uniform
    return model.train()


MODELS = {family: tiny(family) for family in ("chatglm", "llama")}


def examples_of(lengths: list[int], seed: int) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
        answer = int(torch.randint(0, length, (), generator=generator))
        made.append(Example(ids, [IGNORE] * answer + ids[answer:]))
    return made


def loss_and_gradients(model: Any, micro_batch: Any) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = next_token_loss(model, micro_batch)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 17), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_pack_gives_the_loss_and_the_gradients_of_the_padded_batch(
    family: str, lengths: list[int], seed: int
) -> None:
    examples = examples_of(lengths, seed)

    packed = loss_and_gradients(MODELS[family], pack_examples(examples, range(len(examples))))
    padded = loss_and_gradients(MODELS[family], pad_examples(examples, pad_id=0))

    torch.testing.assert_close(packed[0], padded[0], atol=1e-4, rtol=1e-5)
    for one, other in zip(packed[1], padded[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", MODELS)
def test_what_an_accelerator_gets_with_a_pack_changes_neither_loss_nor_gradients(
    family: str,
) -> None:
    part = pack_examples(examples_of([12, 3, 7, 1, 8], seed=3), range(5))
    for_accelerator = replace(part, **part._of_the_host())
    assert for_accelerator.pack_layout is not None
    assert for_accelerator.predicting is not None
    assert for_accelerator.pack_layout.longest == 12

    found = loss_and_gradients(MODELS[family], for_accelerator)
    expected = loss_and_gradients(MODELS[family], part)

    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("family", MODELS)
def test_folded_heads_of_short_examples_leave_the_gradients_unchanged(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = pack_examples(examples_of([12, 3, 7, 1, 8], seed=3), range(5))
    found = {}
    for most in (0, 7, 256):  # none folded; the examples of 3, 7 and 1 tokens; all
        monkeypatch.setattr(packed_attention, "MAX_FOLDED_TOKENS", most)
        found[most] = loss_and_gradients(MODELS[family], part)

    for most in (7, 256):
        torch.testing.assert_close(found[most], found[0], atol=1e-4, rtol=1e-4)


def test_one_mask_serves_all_layers_of_a_pack_and_is_freed_with_it() -> None:
    ends = torch.tensor([0, 3, 8], dtype=torch.int32)

    first = packed_attention.folded_causal_bias(ends, 5, 2, torch.float32)
    again = packed_attention.folded_causal_bias(ends, 5, 2, torch.float32)
    narrow = packed_attention.folded_causal_bias(ends, 5, 2, torch.bfloat16)

    assert again is first
    assert narrow.dtype == torch.bfloat16
    assert first.shape == (10, 5)
    assert (first == 0).sum(1).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    alive = weakref.ref(narrow)
    del ends, narrow
    assert alive() is None


@pytest.mark.parametrize("family", MODELS)
def test_changing_one_example_of_a_pack_changes_no_other(family: str) -> None:
    first, second, other = examples_of([7, 5, 7], seed=1)
    model = MODELS[family].eval()

    with torch.no_grad():
        before = model(**pack_examples([first, second], [0, 1]).inputs()).logits[:, 7:]
        after = model(**pack_examples([other, second], [0, 1]).inputs()).logits[:, 7:]

    torch.testing.assert_close(before, after, atol=0, rtol=0)


@pytest.mark.parametrize("family", MODELS)
def test_it_generates_as_sdpa_does(family: str) -> None:
    model = MODELS[family].eval()
    prompt = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    inputs = {"input_ids": prompt, "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5])}
    settings_ = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    packed = model.generate(**inputs, **settings_)
    model.set_attn_implementation("sdpa")
    plain = model.generate(**inputs, **settings_)
    model.set_attn_implementation("packed")

    assert packed.tolist() == plain.tolist()


# ---- a window -------------------------------------------------------------------------------


def windowed(family: str, attention: str) -> Any:
    """A model whose tokens see four, themselves included: in every layer, or in one of two."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    if family == "mistral":
        model: Any = MistralForCausalLM._from_config(
            MistralConfig(**shape), attn_implementation=attention
        )
    else:
        config = Qwen2Config(
            **shape, use_sliding_window=True, layer_types=["full_attention", "sliding_attention"]
        )
        model = Qwen2ForCausalLM._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.train()


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_window_shorter_than_a_row_is_kept_in_a_pack(family: str) -> None:
    examples = examples_of([9, 3, 12], seed=2)
    alone = [pad_examples([example], pad_id=0) for example in examples]
    ours, theirs = windowed(family, "packed"), windowed(family, "eager")

    packed = loss_and_gradients(ours, pack_examples(examples, range(3)))
    expected = sum(next_token_loss(theirs, row) for row in alone)
    expected.backward()  # type: ignore[union-attr]

    torch.testing.assert_close(packed[0], expected, atol=1e-4, rtol=1e-5)
    for found, parameter in zip(packed[1], theirs.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-4, rtol=1e-4)
    ours.config.sliding_window = theirs.config.sliding_window = 400
    wide = loss_and_gradients(ours, pack_examples(examples, range(3)))
    assert (wide[0] - packed[0]).abs() > 1e-3  # the window decides something here


def test_a_window_is_kept_while_an_answer_is_written() -> None:
    prompt = torch.arange(1, 15)[None]
    ours, theirs = windowed("mistral", "packed").eval(), windowed("mistral", "eager").eval()

    with torch.no_grad():
        torch.testing.assert_close(
            ours(input_ids=prompt).logits, theirs(input_ids=prompt).logits, atol=1e-4, rtol=1e-4
        )


def test_a_window_and_virtual_tokens_are_refused_together() -> None:
    model = windowed("mistral", "packed")
    pack_of_two = pack_examples(examples_of([9, 7], seed=1), range(2))
    virtual = [(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))] * 2

    with pytest.raises(ValueError, match="a sliding window cannot be combined"):
        model(**pack_of_two.inputs(), virtual_tokens=virtual)


def test_the_setting_of_cudnn_is_restored_even_after_a_failure() -> None:
    seen = []

    @packed_attention.without_cudnn()
    def fail() -> None:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        raise KeyError

    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for setting in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(setting)
            with pytest.raises(KeyError):
                fail()
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)

    assert seen == [False, True, False, False]
