"""llama.cpp's own HTTP server in this process, and tiny models to compare its answers with."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glmtune.conversation import Conversation, Message
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.chatglm.stock_files import write_stock_files
from glmtune.model.load import load_model
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.use.generate import Request, Sampling, generate

PACKAGE = "xllamacpp"
STOPS = (2, 486, 488)  # </s>, <|user|>, <|observation|>
SMALL = {
    "num_layers": 2,
    "hidden_size": 96,
    "ffn_hidden_size": 160,
    "num_attention_heads": 6,
    "kv_channels": 16,
    "multi_query_attention": True,
    "multi_query_group_num": 3,
    "add_qkv_bias": True,
    "padded_vocab_size": 496,
    "seq_length": 512,
    "initializer_range": 0.2,
}


def start(model: Path, lora: Path | None = None) -> "Client":
    """Serve a GGUF, and a LoRA over it, or skip where the package is missing."""
    llama = pytest.importorskip(PACKAGE, reason="llama.cpp's server (xllamacpp) is not installed")
    params = llama.CommonParams()
    params.model.path = str(model)
    if lora is not None:
        params.lora_adapters = [llama.CommonAdapterLoraInfo(str(lora), 1.0)]
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 512, 1, 1
    # By default llama.cpp keeps keys and values in float16.
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup, params.fit_params, params.use_jinja = False, False, True
    params.hostnames, params.port = ["127.0.0.1"], 0
    return Client(llama.Server(params))


class Client:
    """Asks a server, which runs as long as this lives."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def tokens(self, text: str) -> list[int]:
        """Ids of a text as in a chat, where special tokens are read."""
        asked = {"content": text, "add_special": False, "parse_special": True}
        return self.post("/tokenize", **asked)["tokens"]

    def prompt(self, messages: list[dict[str, Any]], **more: Any) -> str:
        return self.post("/apply-template", messages=messages, **more)["prompt"]

    def greedy(self, ids: list[int], max_tokens: int) -> list[int]:
        asked = {"prompt": ids, "n_predict": max_tokens, "temperature": 0, "cache_prompt": False}
        return self.post("/completion", return_tokens=True, **asked)["tokens"]

    def top_logprobs(self, ids: list[int], count: int) -> dict[int, float]:
        """Of the token after a prompt."""
        asked = {"prompt": ids, "n_predict": 1, "temperature": 0, "cache_prompt": False}
        answer = self.post("/completion", n_probs=count, **asked)
        [first] = answer["completion_probabilities"]
        return {each["id"]: each["logprob"] for each in first["top_logprobs"]}


def make(folder: Path, tokenizer: Any, **fields: Any) -> Path:
    """A ChatGLM with random weights, norms and biases, none of which is 0 or 1."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**SMALL, **fields}))
        for name, parameter in model.named_parameters():
            if "layernorm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
    write_stock_files(folder, tokenizer, model.config)
    return folder


def prompt_of(tokenizer: Any, text: str = "北京的天气，people 12？") -> list[int]:
    return ChatGLMTemplate(tokenizer).prompt_ids(Conversation((Message("user", text),)))


def greedy(model: Any, ids: list[int], max_tokens: int) -> list[int]:
    requests, sampling = [Request(ids, max_tokens)], Sampling(temperature=0)
    [result] = generate(model, requests, stop_ids=STOPS, sampling=sampling)
    return result.ids


@torch.no_grad()
def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    return (
        model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float().log_softmax(-1)
    )


def assert_same_answers(server: Client, model: Any, ids: list[int]) -> None:
    expected = log_probabilities(model, ids)
    # The server gives no scores of an answer without text: a stop, or a part of a character.
    while expected.argmax().item() in {*STOPS, *range(259)}:
        ids = [*ids, 300 + len(ids)]
        expected = log_probabilities(model, ids)
    found = server.top_logprobs(ids, 10)
    assert len(found) == 10
    assert found == pytest.approx({index: expected[index].item() for index in found}, abs=1e-4)
    assert set(found) == set(expected.topk(10).indices.tolist())
    answer = greedy(model, ids, 20)
    assert server.greedy(ids, 20)[: len(answer)] == answer


def save_lora(base: Path, folder: Path, **fields: Any) -> Any:
    """Save an adapter that has learned something, and return the model with it."""
    config = LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", **fields)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = get_peft_model(load_model(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return model.eval()
