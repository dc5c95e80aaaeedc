"""An adapter is merged layer by layer exactly as peft merges it in memory."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.use.export.odd_model import ALL_LINEAR, MakeAdapter, MakeModel
from torch import Tensor

from glmtune.errors import CheckpointError
from glmtune.methods import method
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import PtuningV2Section
from glmtune.template.select import template_for
from glmtune.use.export.update import merged_weights

CAUSAL = {"task_type": "CAUSAL_LM"}


def lora(**changes: Any) -> Any:
    return peft.LoraConfig(**({"r": 4, "target_modules": ALL_LINEAR} | CAUSAL | changes))


CONFIGS: dict[str, Any] = {
    "LoRA": lora(),
    "rsLoRA with its biases": lora(use_rslora=True, bias="lora_only"),
    "all biases": lora(target_modules=["dense"], bias="all"),
    "DoRA": lora(use_dora=True),
    "PiSSA as peft saves it": lora(init_lora_weights="pissa"),
    "OLoRA as peft saves it": lora(init_lora_weights="olora"),
    "ranks that differ": lora(rank_pattern={"dense": 2}, alpha_pattern={"dense_4h_to_h": 3}),
    "modules in full": lora(
        target_modules=["query_key_value"],
        modules_to_save=["output_layer", "post_attention_layernorm"],
    ),
    "a container in full": lora(target_modules=["query_key_value"], modules_to_save=["mlp"]),
    "embeddings": lora(target_modules=["word_embeddings", "output_layer"]),
    "single tokens": lora(
        target_modules=["dense"], trainable_token_indices={"word_embeddings": [3, 5]}
    ),
    "IA3": peft.IA3Config(
        target_modules=["query_key_value", "dense_4h_to_h"],
        feedforward_modules=["dense_4h_to_h"],
        **CAUSAL,
    ),
    "VeRA": peft.VeraConfig(r=8, target_modules=["query_key_value", "dense"], **CAUSAL),
    "OFT": peft.OFTConfig(r=0, oft_block_size=8, target_modules=ALL_LINEAR, **CAUSAL),
    "LoHa": peft.LoHaConfig(r=4, target_modules=ALL_LINEAR, **CAUSAL),
    "LoKr": peft.LoKrConfig(r=4, target_modules=ALL_LINEAR, **CAUSAL),
    "AdaLoRA": peft.AdaLoraConfig(total_step=10, target_modules=ALL_LINEAR, **CAUSAL),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"], **CAUSAL),
}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_is_that_of_merge_and_unload_in_peft(
    name: str, odd_model_dir: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(odd_model_dir, CONFIGS[name])
    stock: Any = peft.PeftModel.from_pretrained(load_model(odd_model_dir), str(adapter))
    stock.merge_and_unload(safe_merge=True).save_pretrained(tmp_path)
    expected, base = tensors_of(tmp_path), tensors_of(odd_model_dir)

    merged = dict(merged_weights(odd_model_dir, adapter).tensors())

    changed = [key for key in base if not torch.equal(base[key], expected[key])]
    assert len(changed) >= 2, "the adapter changes nothing, so equality would prove nothing"
    assert merged.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(merged[key], expected[key])] == []


def test_a_half_precision_base_is_merged_in_float32_and_rounded_once(
    make_model: MakeModel, make_adapter: MakeAdapter
) -> None:
    base = make_model(torch.bfloat16)
    adapter = make_adapter(base, lora())
    wide: Any = peft.PeftModel.from_pretrained(load_model(base, dtype=torch.float32), str(adapter))
    expected = wide.merge_and_unload().state_dict()

    merged = dict(merged_weights(base, adapter).tensors())

    assert {each.dtype for each in merged.values()} == {torch.bfloat16}
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name].to(torch.bfloat16), rtol=0, atol=0)


def test_what_survives_of_the_update_depends_on_its_size_and_on_the_dtype(
    odd_model_dir: Path, make_adapter: MakeAdapter, make_model: MakeModel
) -> None:
    base = make_model(torch.bfloat16)
    shares = {}
    for scale in (0.1, 1e-4):
        adapter = make_adapter(base, lora(lora_alpha=4), scale)
        for dtype in (torch.bfloat16, torch.float32):
            merged = merged_weights(base, adapter, dtype)
            dict(merged.tensors())
            shares[scale, dtype] = merged.survival

    assert shares[0.1, torch.float32].share > 0.999
    assert 0.8 < shares[0.1, torch.bfloat16].share < 0.999
    assert shares[1e-4, torch.bfloat16].share < 0.2, "below the last bit of most weights"
    assert shares[1e-4, torch.float32].share > 0.99
    assert "survives in bfloat16 (8 tensors" in shares[1e-4, torch.bfloat16].sentence()


def test_numbers_that_overflow_in_float16_are_refused_by_name(
    odd_model_dir: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(odd_model_dir, lora(target_modules=["dense"]), 1e3)

    with pytest.raises(CheckpointError, match=r"dense\.weight are not finite in float16.*bfloat16"):
        dict(merged_weights(odd_model_dir, adapter, torch.float16).tensors())


@pytest.mark.parametrize("tool", ["ms-swift 1", "named_parameters() of a peft model"])
def test_adapters_of_other_tools_are_merged_alike(
    tool: str, odd_model_dir: Path, odd_adapter_dir: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    shutil.copyfile(odd_adapter_dir / "adapter_config.json", foreign / "adapter_config.json")
    tensors = load_file(odd_adapter_dir / "adapter_model.safetensors")
    cut = "base_model.model." if tool == "ms-swift 1" else ""
    renamed = {
        name.removeprefix(cut)
        .replace("_A.weight", "_A.default.weight")
        .replace("_B.weight", "_B.default.weight"): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys().isdisjoint(tensors)
    torch.save(renamed, foreign / "adapter_model.bin")

    expected = dict(merged_weights(odd_model_dir, odd_adapter_dir).tensors())
    merged = dict(merged_weights(odd_model_dir, foreign).tensors())

    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_a_prefix_of_p_tuning_v2_is_refused_with_the_way_out(
    odd_model_dir: Path, tmp_path: Path
) -> None:
    model = method.attach(load_model(odd_model_dir), PtuningV2Section(pre_seq_len=4))
    method.save(model, tmp_path, template_for(load_tokenizer(odd_model_dir)))

    with pytest.raises(CheckpointError, match=r"P-Tuning v2 prefix.*glmtune chat MODEL --adapter"):
        merged_weights(odd_model_dir, tmp_path)


def test_an_adapter_of_another_shape_is_refused(
    make_model: MakeModel, odd_adapter_dir: Path
) -> None:
    other = make_model(hidden_size=48)

    with pytest.raises(CheckpointError, match="does not fit this model"):
        merged_weights(other, odd_adapter_dir)


def test_virtual_tokens_and_inits_that_cannot_be_repeated_are_refused(
    odd_model_dir: Path, make_adapter: MakeAdapter
) -> None:
    prompt = make_adapter(odd_model_dir, peft.PromptTuningConfig(num_virtual_tokens=2, **CAUSAL))
    niter = make_adapter(odd_model_dir, lora(init_lora_weights="pissa_niter_4"))

    with pytest.raises(CheckpointError, match=r"PROMPT_TUNING.*glmtune chat MODEL --adapter"):
        merged_weights(odd_model_dir, prompt)
    with pytest.raises(CheckpointError, match=r"pissa_niter_4.*path_initial_model"):
        merged_weights(odd_model_dir, niter)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_of_tied_embeddings_is_refused_rather_than_half_merged(
    tmp_path: Path, make_adapter: MakeAdapter, tiny_llama_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig.from_pretrained(tiny_llama_dir)
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tuned = peft.get_peft_model(model, lora(target_modules=["lm_head"]))
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)

    with pytest.raises(CheckpointError, match=r"lm_head.*tied"):
        merged_weights(tmp_path, tmp_path / "adapter")
