"""What vLLM reads, and what it would silently compute wrongly."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tests.use.export.odd_model import MakeAdapter, MakeModel

from glmtune.conversation import Conversation, read_messages
from glmtune.errors import CheckpointError
from glmtune.methods import method
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.load import load_model, load_tokenizer
from glmtune.template.select import template_for
from glmtune.use.export.job import open_job
from glmtune.use.export.run import export
from glmtune.use.export.vllm import start_vllm, write_vllm
from glmtune.use.generate import Request, Sampling, generate


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


VLLM_CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "你好"}], "tools": None},
    {
        "messages": [{"role": "user", "content": "<|user|> sop </s>\n sophisticated people"}],
        "tools": None,
    },
    {
        "messages": [
            {"role": "system", "content": "Use the tools."},
            {"role": "user", "content": "10111 的股价是多少？"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "track", "arguments": '{"symbol": "10111"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": '{"price": 12412}'},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "track",
                    "description": "追踪股票的实时价格",
                    "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}},
                },
            }
        ],
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("is_adapter", [False, True], ids=["a model", "an adapter"])
def test_vllm_answers_as_we_do(
    is_adapter: bool, shared: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """With vLLM in an environment of its own: GLMTUNE_VLLM_PYTHON names its interpreter."""
    python = os.environ.get("GLMTUNE_VLLM_PYTHON")
    if not python:
        pytest.skip("vLLM is not at hand: GLMTUNE_VLLM_PYTHON names no interpreter that has it")
    tokenizer = load_tokenizer(shared / "golden" / "chatglm3-tokenizer")
    base = tmp_path / "base"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ChatGLMForConditionalGeneration(vllm_config()).save_pretrained(base)
    tokenizer.save_pretrained(str(base))
    source = make_adapter(base, config(r=8), has_card=False) if is_adapter else base
    export(source, tmp_path / "out", "vllm", base=str(base) if is_adapter else None)
    (tmp_path / "chats.json").write_text(json.dumps(VLLM_CHATS), encoding="utf-8")
    model = base if is_adapter else tmp_path / "out"
    extra = ["--tokenizer", tmp_path / "out", "--adapter", tmp_path / "out"] if is_adapter else []
    script = Path(__file__).with_name("vllm_answers.py")
    command = [python, script, model, tmp_path / "chats.json", tmp_path / "answers.json", *extra]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    subprocess.run(list(map(str, command)), env=kept | quiet, check=True, capture_output=True)

    template = template_for(tokenizer)
    ours = load_model(base)
    ours = method.load(ours, source).eval() if is_adapter else ours.eval()
    prompts = [
        template.prompt_ids(Conversation(read_messages(chat["messages"], chat["tools"])))
        for chat in VLLM_CHATS
    ]
    requests, greedy = [Request(ids, 16) for ids in prompts], Sampling(temperature=0)
    answers = {
        each.index: each.ids
        for each in generate(ours, requests, stop_ids=template.stop_ids, sampling=greedy)
    }
    found = json.loads((tmp_path / "answers.json").read_text())
    assert [each["prompt"] for each in found] == prompts
    for index, each in enumerate(found):
        assert each["answer"][: len(answers[index])] == answers[index]


def vllm_config() -> ChatGLMConfig:
    return ChatGLMConfig(
        num_layers=3,
        hidden_size=256,
        ffn_hidden_size=512,
        num_attention_heads=4,
        kv_channels=64,  # a width that vLLM's attention on CPUs has
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        padded_vocab_size=65024,
        seq_length=2048,
        initializer_range=0.1,
        rope_ratio=7.5,
    )
