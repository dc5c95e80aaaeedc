"""On an accelerator nothing inside a micro-batch waits for it.

A tensor on `meta` has no values, so whatever would read one fails here, as `.item()`, `.tolist()`,
`nonzero` and a boolean index do, for which a GPU is waited for.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.kernels import varlen_attention
from glmtune.methods import method
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.objective.kto import Kto
from glmtune.objective.next_token import next_token_loss
from glmtune.objective.preference import Preference
from glmtune.recipe.methods import LoraSection, PtuningV2Section
from glmtune.recipe.sections import PreferenceSection
from glmtune.template.base import IGNORE, Example
from glmtune.train.neftune import add_noise

META = torch.device("meta")
EXAMPLES = [Example(list(range(3, n)), [IGNORE, IGNORE, *range(5, n)]) for n in (9, 17, 6)]


def chatglm() -> Any:
    config = ChatGLMConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=48, kv_channels=8, num_attention_heads=4,
        multi_query_attention=True, multi_query_group_num=2, padded_vocab_size=64,
    )  # fmt: skip
    return ChatGLMForConditionalGeneration._from_config(config, attn_implementation="packed")


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation="packed")


@pytest.fixture(autouse=True)
def _probe_again() -> Iterator[None]:
    """What was found out about a device in a test holds for that test."""
    varlen_attention._why_not.cache_clear()
    yield
    varlen_attention._why_not.cache_clear()


def learn(model: Any, part: MicroBatch) -> None:
    """Forward, loss, backward and clipping, without a value in any tensor."""
    loss = next_token_loss(model, part)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    assert all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("section", [LoraSection(), PtuningV2Section(pre_seq_len=3)])
def test_a_micro_batch_of_chatglm_never_waits(dtype: torch.dtype, section: Any) -> None:
    model = method.attach(chatglm().to(dtype), section)
    add_noise(model, 5.0)

    learn(model.train().to(META), pack_examples(EXAMPLES, range(3)).to(META))

    is_half = dtype == torch.bfloat16  # float32 takes the buckets
    assert varlen_attention.works(META, dtype, 8) is is_half


@pytest.mark.parametrize("stage", ["dpo", "kto"])
@pytest.mark.parametrize("family", [chatglm, llama])
def test_preferences_never_wait(stage: str, family: Callable[[], Any]) -> None:
    model = method.attach(family().bfloat16(), LoraSection()).train().to(META)
    part = pack_examples([*EXAMPLES, EXAMPLES[0]], range(4))
    is_good = torch.tensor([True, False, True, True])
    section = PreferenceSection()
    objective = Preference(section) if stage == "dpo" else Kto(section, 64)
    assert objective.count(part) == (2 if stage == "dpo" else 4)  # of what is on the host
    on_device = replace(part, is_good=is_good).to(META)

    with FakeTensorMode(allow_non_fake_inputs=True) if family is llama else nullcontext():
        loss = objective.loss(model, on_device)
        loss.backward()  # type: ignore[no-untyped-call]

    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_checkpointing_and_prefixes_never_wait() -> None:
    model = method.attach(chatglm().bfloat16(), LoraSection())
    model.activation_checkpointing_enable({"use_reentrant": False})
    prefixes = torch.tensor([2, 0, 1], dtype=torch.int32)

    part = replace(pack_examples(EXAMPLES, range(3)), prefix_lengths=prefixes).to(META)

    learn(model.train().to(META), part)


def test_other_families_wait_only_where_transformers_looks_for_packs_in_positions() -> None:
    model, part = llama().bfloat16().to(META), pack_examples(EXAMPLES, range(3)).to(META)

    with pytest.raises(RuntimeError, match="item") as caught:
        learn(model, part)
    with FakeTensorMode(allow_non_fake_inputs=True):  # in which it does not look
        learn(model, part)

    assert any("find_packed_sequence_indices" in str(entry) for entry in caught.traceback)


def test_this_test_sees_a_wait() -> None:
    part = pack_examples(EXAMPLES, range(3))
    tensors_alone = replace(part.to(META), pack_layout=None)

    with pytest.raises((RuntimeError, NotImplementedError)):
        learn(chatglm().bfloat16().to(META), tensors_alone)
