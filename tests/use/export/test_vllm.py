"""What vLLM reads, and what it would silently compute wrongly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tests.use.export.odd_model import MakeAdapter, MakeModel

from glmtune.errors import CheckpointError
from glmtune.use.export.job import open_job
from glmtune.use.export.vllm import start_vllm, write_vllm


def config(**changes: Any) -> LoraConfig:
    fields = {"r": 4, "target_modules": ["query_key_value"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**(fields | changes))


def test_an_adapter_keeps_its_names_and_numbers_and_gets_a_tokenizer(
    odd_adapter_dir: Path, tmp_path: Path
) -> None:
    write_vllm(open_job(odd_adapter_dir), tmp_path)

    stored = load_file(odd_adapter_dir / "adapter_model.safetensors")
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert stored.keys() == written.keys()
    assert all(torch.equal(stored[name], written[name]) for name in stored)
    assert all(name.startswith("base_model.model.transformer.encoder.layers.") for name in written)
    assert (tmp_path / "tokenizer_config.json").is_file()


def test_the_line_starts_the_server_with_the_base_the_adapter_and_enough_rank(
    odd_model_dir: Path, odd_adapter_dir: Path, make_adapter: MakeAdapter
) -> None:
    line = start_vllm(open_job(odd_adapter_dir), Path("out/mine"))
    wide = start_vllm(open_job(make_adapter(odd_model_dir, config(r=17))), Path("out/mine"))
    model = start_vllm(open_job(odd_model_dir), Path("out/mine"))

    server = "python -m vllm.entrypoints.openai.api_server --model"
    assert line == (
        f"{server} {odd_model_dir} --tokenizer out/mine --enable-lora --max-lora-rank 8 "
        "--lora-modules mine=out/mine"
    )
    assert "--max-lora-rank 32 " in wide
    assert model == f"{server} out/mine --served-model-name mine"


def test_a_complete_model_keeps_the_names_that_vllm_reads(
    odd_model_dir: Path, tmp_path: Path
) -> None:
    write_vllm(open_job(odd_model_dir), tmp_path)

    stored = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert stored["model_type"] == "chatglm"
    assert {"num_layers", "padded_vocab_size", "multi_query_group_num"} <= stored.keys()


def test_a_prefix_is_refused_and_a_bias_of_every_layer_is_not(
    make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"P-Tuning v2 prefix.*vLLM does not have"):
        write_vllm(open_job(make_model(pre_seq_len=4)), tmp_path)

    write_vllm(open_job(make_model(add_bias_linear=True)), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["add_bias_linear"] is True


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["output_layer"]}, "modules that were trained in full"),
        ({"rank_pattern": {"layers.0.self_attention.query_key_value": 2}}, "ranks that differ"),
        ({"alpha_pattern": {"layers.0.self_attention.query_key_value": 2}}, "scales that differ"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "biases of B"),
        ({"target_modules": ["output_layer"]}, "a LoRA of output_layer"),
    ],
)
def test_what_vllm_has_no_place_for_is_refused_with_the_way_out(
    changes: dict[str, Any],
    what: str,
    odd_model_dir: Path,
    make_adapter: MakeAdapter,
    tmp_path: Path,
) -> None:
    adapter = make_adapter(odd_model_dir, config(**changes))

    with pytest.raises(CheckpointError, match=rf"vLLM has no place for {what}.*glmtune merge"):
        write_vllm(open_job(adapter), tmp_path)
