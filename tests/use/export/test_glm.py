"""The same network in transformers' glm layout gives the same logits, whatever its shapes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.use.export.odd_model import MakeModel, logits_of
from transformers import AutoModelForCausalLM, GlmForCausalLM

from glmtune.errors import CheckpointError
from glmtune.model.load import load_model
from glmtune.use.export.glm import glm_names, python_line, write_glm
from glmtune.use.export.job import open_job

SHAPES: dict[str, dict[str, Any]] = {
    "heads wider than the model, three groups": {},
    "no bias": {"add_qkv_bias": False},
    "every head its own keys": {"multi_query_attention": False},
    "one group": {"multi_query_group_num": 1},
    "positions interpolated, as in chatglm2-6b-32k": {"rope_interpolation": True, "rope_ratio": 4},
    "another epsilon": {"layernorm_epsilon": 1e-3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_stock_classes_give_the_logits_of_the_original(
    shape: str, make_model: MakeModel, tmp_path: Path
) -> None:
    base = make_model(**SHAPES[shape])

    write_glm(open_job(base), tmp_path)

    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(stock) is GlmForCausalLM
    expected, found = logits_of(load_model(base)), logits_of(stock)
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max() < 1e-5 * scale
    assert expected.std() > 0.1, "all logits are alike, which would hide a mistake"


def test_the_configuration_reads_in_transformers_4_and_5(
    odd_model_dir: Path, tmp_path: Path
) -> None:
    import json

    write_glm(open_job(odd_model_dir), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))

    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 75000
    assert config["partial_rotary_factor"] == 0.5
    assert (config["head_dim"], config["num_key_value_heads"]) == (16, 3)
    assert config["eos_token_id"] == list(open_job(odd_model_dir).template.stop_ids)
    assert config["torch_dtype"] == "float32"
    assert config["rms_norm_eps"] == 1e-5


def test_the_dtype_of_a_written_model_can_be_chosen(odd_model_dir: Path, tmp_path: Path) -> None:
    write_glm(open_job(odd_model_dir, dtype="bfloat16"), tmp_path)

    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_bias_linear": True}, "add_bias_linear is true.*--to chatglm"),
        ({"pre_seq_len": 4}, "P-Tuning v2 prefix.*--to chatglm"),
    ],
)
def test_what_glm_does_not_have_is_refused(
    changes: dict[str, Any], message: str, make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_glm(open_job(make_model(**changes)), tmp_path)


def test_a_model_that_is_no_chatglm_has_no_other_layout(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"'llama'.*glmtune merge"):
        write_glm(open_job(tiny_llama_dir), tmp_path)


def test_names_of_modules_map_one_to_one_but_for_the_fused_projection() -> None:
    layer = "transformer.encoder.layers.12"

    assert glm_names(f"{layer}.self_attention.query_key_value") == (
        "model.layers.12.self_attn.q_proj",
        "model.layers.12.self_attn.k_proj",
        "model.layers.12.self_attn.v_proj",
    )
    assert glm_names(f"{layer}.mlp.dense_4h_to_h") == ("model.layers.12.mlp.down_proj",)
    assert glm_names("transformer.embedding.word_embeddings") == ("model.embed_tokens",)
    with pytest.raises(CheckpointError, match="no such module"):
        glm_names("transformer.prefix_encoder.embedding")


def test_a_printed_line_is_quoted_for_the_shell() -> None:
    assert python_line("print('a b')") == "python -c \"print('a b')\""
    assert python_line("print('$HOME')") == "python -c 'print('\"'\"'$HOME'\"'\"')'"
