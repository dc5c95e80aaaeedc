"""Parameter names, checkpoint files, and the initialization of new weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.model.chatglm.models import INPUTS, SIX_B, errors, load, real, tiny_config, tiny_model
from torch import Tensor

from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration

RUNS = ["constant_lr", "tutorial_like", "accumulate_2_decay", "accumulate_2_token_mean"]


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
