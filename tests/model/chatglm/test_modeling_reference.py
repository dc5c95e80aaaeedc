"""The network computes the reference's logits, hidden states, losses and gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.model.chatglm.models import errors, inputs_of, load, load_with_prefix, real, tiny_config
from torch import Tensor
from transformers import DynamicCache, StaticCache

from glmtune.model.chatglm.modeling_chatglm import (
    ChatGLMForConditionalGeneration,
    ChatGLMModel,
)


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
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from safetensors.torch import load_file
import torch
from tests.model.chatglm.models import errors, load
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
