"""The network gives the reference's numbers, and keeps transformers' promises."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import (
    ChatGLMForConditionalGeneration,
    ChatGLMForSequenceClassification,
    ChatGLMModel,
)

RUNS = ["constant_lr", "tutorial_like", "accumulate_2_decay", "accumulate_2_token_mean"]
INPUTS = ("input_ids", "attention_mask", "position_ids")
SIX_B = {
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "seq_length": 8192,
}


def load(golden: Path, **settings: Any) -> ChatGLMForConditionalGeneration:
    """Load the reference's tiny model, with other settings than its config has."""
    folder = golden / "tiny-model"
    dtype = settings.pop("dtype", torch.float32)
    attention = settings.pop("attn_implementation", "sdpa")
    config = ChatGLMConfig.from_pretrained(folder, **settings)
    model: ChatGLMForConditionalGeneration = ChatGLMForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention
    )
    return model.eval()


def load_with_prefix(golden: Path, kind: str) -> ChatGLMForConditionalGeneration:
    """Load the tiny model with one of the reference's P-Tuning v2 prefixes over it."""
    model = load(golden, pre_seq_len=5, prefix_projection=kind == "ptuning_projection")
    stored = load_file(golden / "tiny-model" / "prefix_encoders.safetensors")
    prefix = {
        key.removeprefix(f"{kind}/"): value
        for key, value in stored.items()
        if key.startswith(f"{kind}/")
    }
    result = model.load_state_dict(prefix, strict=False)
    assert not result.unexpected_keys
    return model


@pytest.fixture(scope="module")
def vectors(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "tiny-model" / "golden.safetensors")


@pytest.fixture(scope="module")
def model(golden: Path) -> ChatGLMForConditionalGeneration:
    return load(golden)


def inputs_of(vectors: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    return {name: vectors[f"{case}.{name}"] for name in INPUTS if f"{case}.{name}" in vectors}


def errors(
    vectors: dict[str, Tensor], case: str, model: nn.Module, **kwargs: Any
) -> tuple[float, float]:
    """Give the largest and the mean difference of the logits at real tokens."""
    inputs = inputs_of(vectors, case)
    with torch.no_grad():
        logits = model(**inputs, **kwargs).logits.float()
    difference = (logits - vectors[f"{case}.logits"]).abs()[real(inputs)]
    return difference.max().item(), difference.mean().item()


def real(inputs: dict[str, Tensor]) -> Tensor:
    """Where the tokens of this chunk are not padding, (batch, seq)."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    return torch.ones_like(ids).bool() if mask is None else mask[:, -ids.shape[1] :].bool()


# ---- the reference ---------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "one_token",
        "all_ones_mask",
        "left_pad",
        "left_pad_no_positions",
        "right_pad",
        "offset_positions",
        "scattered_positions",
    ],
)
def test_logits_are_those_of_the_reference(
    golden: Path, vectors: dict[str, Tensor], case: str, attn_implementation: str, use_cache: bool
) -> None:
    model = load(golden, attn_implementation=attn_implementation)

    assert errors(vectors, case, model, use_cache=use_cache)[0] < 1e-4


@pytest.mark.parametrize("case", ["plain", "one_token", "left_pad"])
def test_hidden_states_are_those_of_the_reference_with_the_last_one_normalised(
    vectors: dict[str, Tensor], model: ChatGLMForConditionalGeneration, case: str
) -> None:
    inputs = inputs_of(vectors, case)
    with torch.no_grad():
        hidden_states = model(**inputs, output_hidden_states=True).hidden_states

    assert len(hidden_states) == 4
    expected = [f"{case}.hidden_0", f"{case}.hidden_1", f"{case}.hidden_2", f"{case}.final_hidden"]
    for got, name in zip(hidden_states, expected, strict=True):
        assert (got - vectors[name])[real(inputs)].abs().max() < 1e-4, name


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("prefix", ["cache", "pad_cache"])
def test_steps_and_chunks_on_a_cache_are_those_of_the_reference(
    golden: Path, vectors: dict[str, Tensor], prefix: str, attn_implementation: str
) -> None:
    model = load(golden, attn_implementation=attn_implementation)
    cache = DynamicCache(config=model.config)
    cases = [f"{prefix}.prefill", *(f"{prefix}.step_{i}" for i in range(5)), f"{prefix}.chunk"]
    cases = [case for case in cases if f"{case}.logits" in vectors]

    assert len(cases) == {"cache": 7, "pad_cache": 5}[prefix]
    for case in cases:
        assert errors(vectors, case, model, past_key_values=cache)[0] < 1e-4, case
    for name in [name for name in vectors if name.startswith(f"{prefix}.key_")]:
        layer = cache.layers[int(name[-1])]
        assert (layer.keys - vectors[name]).abs().max() < 1e-4
        value = vectors[name.replace("key", "value")]
        assert (layer.values - value).abs().max() < 1e-4


def test_all_tokens_at_once_give_what_the_steps_gave(
    vectors: dict[str, Tensor], model: ChatGLMForConditionalGeneration
) -> None:
    assert errors(vectors, "cache.full", model)[0] < 1e-4


def test_a_static_cache_gives_the_numbers_of_a_dynamic_one(
    vectors: dict[str, Tensor], model: ChatGLMForConditionalGeneration
) -> None:
    cache = StaticCache(config=model.config, max_cache_len=32)

    for case in ["cache.prefill", "cache.step_0", "cache.step_1"]:
        assert errors(vectors, case, model, past_key_values=cache)[0] < 1e-4, case


@pytest.mark.parametrize("case", ["plain", "left_pad", "offset_positions"])
def test_rope_ratio_multiplies_the_rotary_base(
    golden: Path, vectors: dict[str, Tensor], case: str
) -> None:
    assert errors(vectors, f"rope_ratio.{case}", load(golden, rope_ratio=50))[0] < 1e-4
    assert errors(vectors, f"rope_ratio.{case}", load(golden))[0] > 0.01


def test_interpolation_divides_the_positions_instead(golden: Path) -> None:
    ids, positions = torch.arange(3, 15)[None], torch.arange(12)[None]
    plain, interpolated = load(golden), load(golden, rope_ratio=4, rope_interpolation=True)

    with torch.no_grad():
        expected = plain(ids, position_ids=positions).logits
        found = interpolated(ids, position_ids=4 * positions).logits
        near = interpolated(ids, position_ids=positions).logits

    assert torch.equal(found, expected)
    assert (near - expected).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["ptuning", "ptuning_projection"])
def test_a_ptuning_prefix_acts_as_a_past(
    golden: Path, vectors: dict[str, Tensor], kind: str
) -> None:
    model = load_with_prefix(golden, kind)

    for case in ["plain", "left_pad"]:
        assert errors(vectors, f"{kind}.{case}", model, use_cache=False)[0] < 1e-4
    cache = DynamicCache(config=model.config)
    for case in ["prefill", "step_0", "step_1", "step_2"]:
        assert errors(vectors, f"{kind}.cache.{case}", model, past_key_values=cache)[0] < 1e-4
    for index, layer in enumerate(cache.layers):
        assert (layer.keys[:1, :, :5] - vectors[f"{kind}.prefix_key_{index}"]).abs().max() < 1e-4
        value = vectors[f"{kind}.prefix_value_{index}"]
        assert (layer.values[:1, :, :5] - value).abs().max() < 1e-4


def test_a_ptuning_prefix_does_not_count_as_a_position(
    golden: Path, vectors: dict[str, Tensor]
) -> None:
    model = load_with_prefix(golden, "ptuning")
    inputs = inputs_of(vectors, "ptuning.left_pad")
    del inputs["position_ids"]

    with torch.no_grad():
        logits = model(**inputs).logits

    difference = (logits - vectors["ptuning.left_pad.logits"])[real(inputs)]
    assert difference.abs().max() < 1e-4


def test_a_ptuning_prefix_is_not_lost_silently(golden: Path, vectors: dict[str, Tensor]) -> None:
    model = load_with_prefix(golden, "ptuning")
    inputs = inputs_of(vectors, "ptuning.plain")

    with pytest.raises(ValueError, match="static cache has no room"):
        model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=32))
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="without gradient checkpointing"):
        model.train()(**inputs)


def test_loss_and_gradients_are_those_of_the_reference(
    golden: Path, vectors: dict[str, Tensor]
) -> None:
    model = load(golden)
    expected = json.loads((golden / "tiny-model" / "golden.json").read_text())["loss"]

    loss = model(**inputs_of(vectors, "left_pad"), labels=vectors["loss.labels"]).loss
    loss.backward()

    assert loss.item() == pytest.approx(expected["value"], abs=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert set(gradients) == set(expected["grad_l2"])
    for name, norm in expected["grad_l2"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4), name
    whole = [name for name in gradients if f"loss.grad.{name}" in vectors]
    assert whole
    for name in whole:
        reference = vectors[f"loss.grad.{name}"]
        assert (gradients[name] - reference).norm() < 1e-4 * reference.norm(), name


@pytest.mark.parametrize(
    ("dtype", "largest", "mean"), [("fp16", 0.03, 0.004), ("bf16", 0.25, 0.03)]
)
@pytest.mark.parametrize("case", ["plain", "left_pad", "offset_positions"])
def test_half_precision_stays_within_its_tolerance(
    golden: Path, vectors: dict[str, Tensor], case: str, dtype: str, largest: float, mean: float
) -> None:
    model = load(golden, dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[dtype])

    got_largest, got_mean = errors(vectors, f"{dtype}.{case}", model)

    assert got_largest < largest
    assert got_mean < mean


@pytest.mark.slow  # a process of its own
def test_bfloat16_is_rounded_where_the_original_rounds(golden: Path) -> None:
    """With scalar kernels, which every CPU has, attention gives the recorded bits.

    A rotation in float32, or a norm that rounds before its weight, moves logits by 0.05 to 0.1.
    """
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from safetensors.torch import load_file
import torch
from test_modeling import errors, load
golden = Path({str(golden)!r})
vectors = load_file(golden / "tiny-model" / "golden.safetensors")
model = load(golden, dtype=torch.bfloat16)
cases = ["plain", "left_pad", "offset_positions"]
print(max(errors(vectors, f"bf16.{{case}}", model)[0] for case in cases))
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}

    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )

    assert float(result.stdout) < 0.01


def test_rotary_angles_are_rounded_as_in_the_reference(golden: Path) -> None:
    table = load_file(golden / "tiny-model" / "rope_table.safetensors")
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    names = [name for name in table if name.startswith("cos_sin.")]
    [positions] = [table[name] for name in table if not name.startswith("cos_sin.")]

    assert len(names) == 6
    for name in names:
        _, ratio, dtype = name.split(".")
        config = tiny_config(kv_channels=128, rope_ratio=int(ratio.removeprefix("ratio_")))
        rotary = ChatGLMModel(config).rotary_pos_emb
        cos, sin = rotary(positions.reshape(1, -1), dtypes[dtype])
        difference = torch.stack((cos, sin), dim=-1)[0].float() - table[name].float()
        assert difference.abs().max() == 0, name


# ---- names, files, fresh weights ---------------------------------------------------------------


def tiny_config(**settings: Any) -> ChatGLMConfig:
    return ChatGLMConfig(
        **{
            "num_layers": 2,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 4,
            "kv_channels": 8,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "add_qkv_bias": True,
            "padded_vocab_size": 64,
            "initializer_range": 0.2,
            **settings,
        }
    )


def tiny_model(**settings: Any) -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    return ChatGLMForConditionalGeneration(tiny_config(**settings)).eval()


def test_the_6b_model_has_the_published_parameters(golden: Path) -> None:
    expected = json.loads((golden / "params.json").read_text())
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**SIX_B))

    parameters = {name: list(p.shape) for name, p in model.named_parameters()}
    tensors = model.state_dict()

    assert parameters == as_shapes(expected["parameters"])
    assert sum(p.numel() for p in model.parameters()) == 6_243_584_000
    assert sum(t.numel() for t in tensors.values()) == expected["state_dict_numel"]
    assert set(tensors) - set(parameters) == {"transformer.rotary_pos_emb.inv_freq"}


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_encoder_has_the_published_parameters(golden: Path, projection: bool) -> None:
    expected = json.loads((golden / "params.json").read_text())
    key = "prefix_encoder_projection" if projection else "prefix_encoder"
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(
            ChatGLMConfig(**SIX_B, pre_seq_len=128, prefix_projection=projection)
        )

    prefix = {
        name.removeprefix("transformer.prefix_encoder."): list(p.shape)
        for name, p in model.named_parameters()
        if name.startswith("transformer.prefix_encoder.")
    }

    assert prefix == as_shapes(expected[key])


def as_shapes(parameters: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Read the names and shapes of params.json."""
    return {entry["name"]: entry["shape"] for entry in parameters}


def test_lora_on_the_6b_model_is_what_peft_prints(golden: Path) -> None:
    expected = json.loads((golden / "params.json").read_text())
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**SIX_B))

    adapted: Any = get_peft_model(model, LoraConfig(r=8))  # peft knows the target of `chatglm`

    assert adapted.peft_config["default"].target_modules == {"query_key_value"}
    assert adapted.get_nb_trainable_parameters() == (1_949_696, 6_245_533_696)
    trainable = {n: list(p.shape) for n, p in adapted.named_parameters() if p.requires_grad}
    assert trainable == as_shapes(expected["lora_parameters"])


@pytest.mark.parametrize("run", RUNS)
def test_an_adapter_of_the_old_peft_gives_the_logits_of_the_reference(
    golden: Path, run: str
) -> None:
    batch = json.loads((golden / "lora" / "lora.json").read_text())["batches"][0]
    expected = load_file(golden / "lora" / run / "after_training.safetensors")
    inputs = {name: torch.tensor(batch[name]) for name in INPUTS if name in batch}
    is_real = real(inputs)

    adapted = PeftModel.from_pretrained(load(golden), golden / "lora" / run).eval()
    with torch.no_grad():
        attached = adapted(**inputs).logits
        unmerged = load(golden)(**inputs).logits
        merged_model = adapted.merge_and_unload()
        merged = merged_model(**inputs).logits

    assert (attached - expected["logits"])[is_real].abs().max() < 1e-3
    assert (merged - expected["merged_logits"])[is_real].abs().max() < 1e-3
    assert (unmerged - expected["logits"])[is_real].abs().max() > 0.01
    weight = merged_model.transformer.encoder.layers[0].self_attention.query_key_value.weight
    assert (weight - expected["merged_layer0_qkv"]).abs().max() < 1e-5


@pytest.mark.parametrize("layout", ["", "sharded-bin", "sharded-safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_layout_of_files_loads_without_a_gap(
    golden: Path, layout: str, dtype: torch.dtype
) -> None:
    model, found = ChatGLMForConditionalGeneration.from_pretrained(
        golden / "tiny-model" / layout, dtype=dtype, output_loading_info=True
    )
    stored = load_file(golden / "tiny-model" / "model.safetensors")

    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    half = stored["transformer.output_layer.weight"].half() if layout else None
    whole = stored["transformer.output_layer.weight"] if half is None else half
    assert torch.equal(model.transformer.output_layer.weight, whole.to(dtype))


def test_a_saved_checkpoint_has_the_tensors_of_the_one_it_came_from(
    golden: Path, tmp_path: Path
) -> None:
    original = load_file(golden / "tiny-model" / "model.safetensors")

    load(golden, rope_ratio=50).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")

    assert set(saved) == set(original)
    for name, tensor in original.items():
        assert saved[name].dtype == tensor.dtype
        assert torch.equal(saved[name], tensor), name


def test_half_precision_files_hold_nothing_in_float32(golden: Path, tmp_path: Path) -> None:
    load(golden, dtype=torch.float16).save_pretrained(tmp_path)

    saved = load_file(tmp_path / "model.safetensors")

    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}


def test_a_checkpoint_without_the_stored_frequencies_loads(
    golden: Path, vectors: dict[str, Tensor], tmp_path: Path
) -> None:
    tensors = load_file(golden / "tiny-model" / "model.safetensors")
    expected = tensors.pop("transformer.rotary_pos_emb.inv_freq")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ChatGLMConfig.from_pretrained(golden / "tiny-model").save_pretrained(tmp_path)

    model, found = ChatGLMForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )

    assert not found["missing_keys"]
    assert torch.equal(model.transformer.rotary_pos_emb.inv_freq, expected)
    assert errors(vectors, "plain", model.eval())[0] < 1e-4


def test_what_is_stored_as_frequencies_does_not_reach_the_angles(
    golden: Path, vectors: dict[str, Tensor]
) -> None:
    model = load(golden)

    model.transformer.rotary_pos_emb.inv_freq.zero_()

    assert errors(vectors, "plain", model)[0] < 1e-4


def test_a_device_map_with_weights_on_disk_gives_the_same_logits(
    golden: Path, vectors: dict[str, Tensor], tmp_path: Path
) -> None:
    parts = ("embedding", "rotary_pos_emb", "output_layer", "encoder.final_layernorm")
    model = ChatGLMForConditionalGeneration.from_pretrained(
        golden / "tiny-model",
        device_map={
            **{f"transformer.{part}": "cpu" for part in parts},
            "transformer.encoder.layers": "disk",
        },
        offload_folder=tmp_path,
    ).eval()

    assert model.transformer.encoder.layers[0].mlp.dense_4h_to_h.weight.device.type == "meta"
    assert errors(vectors, "plain", model)[0] < 1e-4


def test_a_fresh_model_is_initialised() -> None:
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(
        tiny_config(hidden_size=64, padded_vocab_size=512, initializer_range=0.02)
    )

    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif "bias" in name:
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name


def test_resizing_the_vocabulary_resizes_both_embeddings_and_the_config(tmp_path: Path) -> None:
    model = tiny_model()

    model.resize_token_embeddings(70, mean_resizing=False)

    assert model.get_input_embeddings().weight.shape == (70, 32)
    assert model.get_output_embeddings().weight.shape == (70, 32)
    assert model.config.padded_vocab_size == 70
    ids = torch.tensor([[69, 1]])
    assert model(ids, labels=ids).logits.shape == (1, 2, 70)
    model.save_pretrained(tmp_path)
    assert ChatGLMForConditionalGeneration.from_pretrained(tmp_path)(ids).logits.shape[-1] == 70


# ---- who sees whom -----------------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_is_spelled_out_reaches_attention(
    attn_implementation: str, additive: bool
) -> None:
    model = tiny_model()
    model.set_attn_implementation(attn_implementation)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    # Two texts in one row: the second restarts its positions and must not see the first.
    may_attend = torch.tril(torch.ones(6, 6, dtype=torch.bool))
    may_attend[4:, :4] = False
    mask: Tensor = may_attend[None, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1]])

    with torch.no_grad():
        joined = model(ids, attention_mask=mask, position_ids=positions).logits
        first, second = model(ids[:, :4]).logits, model(ids[:, 4:]).logits

    assert (joined - torch.cat((first, second), dim=1)).abs().max() < 1e-5


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_jump_in_the_positions_is_not_taken_for_the_border_of_a_text(use_cache: bool) -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    positions = torch.tensor([[0, 1, 5, 6]])
    causal = torch.tril(torch.ones(1, 1, 4, 4, dtype=torch.bool))

    with torch.no_grad():
        implied = model(ids, position_ids=positions, use_cache=use_cache).logits
        spelled_out = model(ids, attention_mask=causal, position_ids=positions).logits

    assert (implied - spelled_out).abs().max() < 1e-5


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit_and_no_gradient_is_nan(
    attn_implementation: str, side: str
) -> None:
    model = tiny_model()
    model.set_attn_implementation(attn_implementation)
    ids = torch.tensor([[5, 6, 7, 8]])
    padding = (3, 0) if side == "left" else (0, 3)

    padded = model(F.pad(ids, padding), attention_mask=F.pad(torch.ones_like(ids), padding)).logits
    padded.sum().backward()

    real_logits = padded[:, 3:] if side == "left" else padded[:, :4]
    assert (real_logits - model(ids).logits).abs().max() < 1e-5
    assert padded.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow  # it compiles a kernel
def test_flex_attention_agrees_with_sdpa() -> None:
    model = tiny_model(kv_channels=16)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(ids).logits
        model.set_attn_implementation("flex_attention")
        assert (model(ids).logits - expected).abs().max() < 1e-5


def test_attention_weights_come_from_the_eager_implementation() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")

    attentions = model(torch.tensor([[5, 6, 7]]), output_attentions=True).attentions

    assert [tuple(weights.shape) for weights in attentions] == [(1, 4, 3, 3)] * 2
    assert torch.allclose(attentions[0].sum(-1), torch.ones(1, 4, 3))
    assert attentions[0].triu(1).abs().max() == 0


def test_separate_keys_for_every_head_agree_with_groups_of_one() -> None:
    grouped = tiny_model(multi_query_group_num=4)
    separate = tiny_model(multi_query_attention=False)
    weights = grouped.state_dict()
    for name in [name for name in weights if "query_key_value" in name]:
        # all queries, all keys, all values  ->  query, key and value head by head
        parts = weights[name].unflatten(0, (3, 4, 8))
        weights[name] = parts.transpose(0, 1).flatten(0, 2)
    separate.load_state_dict(weights)
    ids = torch.tensor([[5, 6, 7, 8]])

    with torch.no_grad():
        assert (separate(ids).logits - grouped(ids).logits).abs().max() < 1e-5


def test_the_whole_forward_pass_is_one_graph() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    with torch.no_grad():
        assert (compiled(ids).logits - model(ids).logits).abs().max() < 1e-5


# ---- training ----------------------------------------------------------------------------------


def test_the_loss_of_half_precision_is_float32() -> None:
    model = tiny_model().to(torch.bfloat16)
    ids = torch.tensor([[5, 6, 7, 8]])

    output = model(ids, labels=ids)

    assert output.loss.dtype == torch.float32
    expected = F.cross_entropy(output.logits[0, :-1].float(), ids[0, 1:])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_divided_by_the_items_of_the_whole_batch() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    mean = model(ids, labels=ids).loss
    share = model(ids, labels=ids, num_items_in_batch=torch.tensor(12)).loss

    assert share.item() == pytest.approx(mean.item() * 3 / 12, rel=1e-6)


def test_only_the_logits_that_are_kept_are_computed() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    whole = model(ids).logits

    for kept, positions in ((1, [3]), (torch.tensor([0, 2]), [0, 2])):
        logits = model(ids, logits_to_keep=kept).logits
        assert torch.allclose(logits, whole[:, positions], atol=1e-5)


def test_inputs_may_be_embeddings_but_not_both() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    embeds = model.get_input_embeddings()(ids)

    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


@contextmanager
def kept_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Count what autograd keeps for the backward pass, apart from the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    total: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total
    total.append(sum(kept.values()))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_saves_memory_with_lora_on(use_reentrant: bool) -> None:
    model = tiny_model(num_layers=6)
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False))
    ids = torch.arange(5, 53).reshape(1, -1)

    def train() -> tuple[int, dict[str, Tensor]]:
        adapted.zero_grad()
        with kept_bytes(adapted) as kept:
            loss = adapted.train()(ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in adapted.named_parameters() if p.requires_grad}
        return kept[0], gradients

    plain_bytes, plain = train()
    adapted.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        adapted.enable_input_require_grads()
    checkpointed_bytes, checkpointed = train()

    assert len(plain) == 12
    assert checkpointed_bytes < plain_bytes / 4
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(checkpointed[name], gradient, atol=1e-6), name


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model(hidden_dropout=0.5, attention_dropout=0.5)
    ids = torch.tensor([[5, 6, 7, 8]])

    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)


def test_autocast_computes_in_half_precision_over_float32_weights() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids, labels=ids).logits

    assert logits.dtype == torch.bfloat16
    assert (logits.float() - model(ids).logits).abs().max() < 0.5


# ---- sequence classification -------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_classified_by_its_last_real_token(side: str) -> None:
    torch.manual_seed(0)
    model = ChatGLMForSequenceClassification(tiny_config(num_labels=3)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    padding = (3, 0) if side == "left" else (0, 3)

    alone = model(ids, labels=torch.tensor([2]))
    padded = model(F.pad(ids, padding), attention_mask=F.pad(torch.ones_like(ids), padding))

    assert alone.logits.shape == (1, 3)
    assert (padded.logits - alone.logits).abs().max() < 1e-5
    expected = F.cross_entropy(alone.logits, torch.tensor([2]))
    assert alone.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_classifier_keeps_its_published_names() -> None:
    model = ChatGLMForSequenceClassification(tiny_config())

    names = {name for name, _ in model.named_parameters() if not name.startswith("transformer.")}

    assert names == {"classifier_head.weight", "classifier_head.bias"}


# ---- several processes -------------------------------------------------------------------------

TENSOR_PARALLEL = """
import sys
import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration as Model

folder = sys.argv[1]
ids = torch.tensor([[5, 6, 7, 8]])
whole = Model.from_pretrained(folder)
split = Model.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"))
assert dist.get_world_size() == 2
layer = split.transformer.encoder.layers[0]
for module in (layer.self_attention.query_key_value, layer.mlp.dense_4h_to_h):
    assert module.weight.to_local().numel() == module.weight.numel() // 2
a, b = whole(ids, labels=ids), split(ids, labels=ids)
a.loss.backward()
b.loss.backward()
assert (a.logits - b.logits).abs().max() < 1e-4
of_split = dict(split.named_parameters())
for name, parameter in whole.named_parameters():
    gradient = of_split[name].grad
    gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    assert (gradient - parameter.grad).abs().max() < 1e-4, name
with torch.no_grad():
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(whole.generate(ids, **settings), split.generate(ids, **settings))
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_weights_and_agree_with_one(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "tensor_parallel.py"
    script.write_text(TENSOR_PARALLEL, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    result = subprocess.run(
        [*launch, str(script), str(tiny_model_dir)], capture_output=True, text=True, check=False
    )

    assert result.stdout.count("equal") == 2, result.stderr[-3000:]


def test_the_parallel_plans_name_modules_that_exist() -> None:
    model = tiny_model()
    names = {name for name, _ in model.transformer.named_modules()}

    for plan in (model.config.base_model_tp_plan, model.config.base_model_pp_plan):
        assert plan
        for name in plan:
            assert name.replace("*", "0") in names
    blocks = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= blocks


def test_a_model_can_be_copied() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_output_layer_gets_states_for_which_its_weight_is_not_copied(rows: int) -> None:
    model = tiny_model()
    given: list[Tensor] = []
    model.transformer.output_layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))

    logits = model(input_ids=torch.ones(rows, 5, dtype=torch.long), logits_to_keep=2).logits

    # For a slice torch copies a bfloat16 weight once per row; one row says that it is contiguous.
    assert (given[0].shape, given[0].stride()) == ((2 * rows, 32), (32, 1))
    assert logits.shape[:2] == (rows, 2)


def test_the_last_mlp_leaves_out_what_is_not_scored_and_nothing_else_changes() -> None:
    scored, plain = tiny_model(), tiny_model()
    plain.load_state_dict(scored.state_dict())
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    is_kept = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1, 0]]).bool()
    seen: list[int] = []
    for block in scored.transformer.encoder.layers:
        block.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0].numel()))

    def score(hidden: Tensor, output_layer: nn.Module) -> Tensor:
        return output_layer(hidden).square().sum()

    loss = scored(ids, logits_to_keep=is_kept, score=score).loss
    expected = plain(ids).logits[is_kept].square().sum()
    loss.backward()
    expected.backward()

    assert seen == [14] * (len(seen) - 1) + [5]
    torch.testing.assert_close(loss, expected)
    for (name, found), (_, other) in zip(
        scored.named_parameters(), plain.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_without_a_score_the_last_hidden_states_are_all_there() -> None:
    model = tiny_model()

    output = model(torch.ones(1, 5, dtype=torch.long), logits_to_keep=1, output_hidden_states=True)

    assert output.logits.shape[:2] == (1, 1)
    assert {states.shape[:2] for states in output.hidden_states} == {(1, 5)}
