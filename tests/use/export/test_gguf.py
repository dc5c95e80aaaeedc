"""A GGUF holds the model to the byte, and llama.cpp's own server answers from it as we do."""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.use.export import llama_server
from tests.use.export.llama_server import STOPS, assert_same_answers, make, prompt_of
from transformers import GlmConfig, GlmForCausalLM

from glmtune.conversation import Conversation, Message, read_messages
from glmtune.errors import CheckpointError, OutputError, RecipeError
from glmtune.model.chatglm.stock_files import write_stock_files
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_model
from glmtune.recipe.choices import Layout
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.use.export.gguf import write_gguf
from glmtune.use.export.weights import Weights

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

SHAPES: dict[str, dict[str, Any]] = {
    "three groups and another rotary base": {"rope_ratio": 7.5},
    "positions that are divided": {"rope_ratio": 4, "rope_interpolation": True},
    "no groups and no bias": {"multi_query_attention": False, "add_qkv_bias": False},
    "heads wider than the hidden state": {"hidden_size": 64},
    "heads narrower than the hidden state": {"hidden_size": 128, "num_attention_heads": 6},
    "narrower, and no multiple": {"hidden_size": 100, "num_attention_heads": 3},
    "wider, without groups": {"hidden_size": 64, "multi_query_attention": False},
}


def field(reader: Any, key: str) -> Any:
    return reader.get_field(key).contents()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: ChatGLMTokenizer) -> Path:
    return make(tmp_path_factory.mktemp("model"), tiny_tokenizer, rope_ratio=7.5)


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    return write_gguf(folder, tmp_path_factory.mktemp("gguf") / "model-f32.gguf", "f32")


@pytest.fixture(scope="module")
def server(f32: Path) -> llama_server.Client:
    return llama_server.start(f32)


def test_float32_tensors_are_those_of_the_checkpoint_to_the_byte(folder: Path, f32: Path) -> None:
    stored = load_model(folder).state_dict()
    names = {
        "token_embd.weight": "transformer.embedding.word_embeddings.weight",
        "output.weight": "transformer.output_layer.weight",
        "output_norm.weight": "transformer.encoder.final_layernorm.weight",
    }
    for layer in range(2):
        inner = f"transformer.encoder.layers.{layer}"
        names |= {
            f"blk.{layer}.attn_norm.weight": f"{inner}.input_layernorm.weight",
            f"blk.{layer}.ffn_norm.weight": f"{inner}.post_attention_layernorm.weight",
            f"blk.{layer}.attn_qkv.weight": f"{inner}.self_attention.query_key_value.weight",
            f"blk.{layer}.attn_qkv.bias": f"{inner}.self_attention.query_key_value.bias",
            f"blk.{layer}.attn_output.weight": f"{inner}.self_attention.dense.weight",
            f"blk.{layer}.ffn_up.weight": f"{inner}.mlp.dense_h_to_4h.weight",
            f"blk.{layer}.ffn_down.weight": f"{inner}.mlp.dense_4h_to_h.weight",
        }

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(f32).tensors}

    assert set(tensors) == set(names)
    for name, tensor in tensors.items():
        assert tensor.data.tobytes() == stored[names[name]].numpy().tobytes(), name


def test_keys_describe_the_model_and_its_tokens(f32: Path, tiny_tokenizer: Any) -> None:
    reader = gguf.GGUFReader(f32)

    shape = {
        "general.architecture": "chatglm",
        "general.file_type": 0,
        "chatglm.block_count": 2,
        "chatglm.embedding_length": 96,
        "chatglm.feed_forward_length": 160,
        "chatglm.attention.head_count": 6,
        "chatglm.attention.head_count_kv": 3,
        "chatglm.rope.dimension_count": 8,
        "chatglm.rope.freq_base": 75000.0,
        "chatglm.context_length": 512,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 486,
        "tokenizer.ggml.eom_token_id": 488,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }
    assert {key: field(reader, key) for key in shape} == shape
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens[480:490] == [
        "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
        "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "[PAD489]",
    ]  # fmt: skip
    assert len(tokens) == 496
    assert field(reader, "tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]
    assert field(reader, "tokenizer.ggml.token_type")[480:490] == [3] * 9 + [5]


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3)])
def test_a_smaller_type_rounds_matrices_and_leaves_vectors(
    dtype: str, tolerance: float, folder: Path, tmp_path: Path
) -> None:
    stored = load_model(folder).state_dict()

    path = write_gguf(folder, tmp_path / "model.gguf", dtype)

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    norm, up = tensors["blk.1.ffn_norm.weight"], tensors["blk.1.ffn_up.weight"]
    inner = "transformer.encoder.layers.1"
    expected = stored[f"{inner}.post_attention_layernorm.weight"].numpy()
    assert norm.data.tobytes() == expected.tobytes()
    assert up.tensor_type.name == dtype.upper()
    values = torch.from_numpy(gguf.quants.dequantize(up.data, up.tensor_type).copy())
    exact = stored[f"{inner}.mlp.dense_h_to_4h.weight"]
    assert 0 < (values - exact).abs().max() < tolerance * exact.abs().max()
    assert path.stat().st_size < 0.8 * 4 * sum(tensor.numel() for tensor in stored.values())


def test_llama_cpp_cuts_text_into_our_tokens(
    server: llama_server.Client, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    parts = (
        *("sop", "eop", "people", "sophisticated", " ", "  ", "\n", "\t", "\r\n", "😀", "\u2581"),
        *("\ufdd0", "<0x0A>", "a", "aa", "b", "你好", "龘", "e\u0301", "\u3000", "12", "<", "|>"),
    )
    chosen = random.Random(0)
    texts = ["".join(chosen.choices(parts, k=chosen.randrange(12))) for _ in range(300)]

    assert [server.tokens(text) for text in texts] == tiny_tokenizer.encode_texts(texts)


def test_real_rows_and_prompts_have_their_ids_in_the_real_vocabulary(
    shared: Path, tmp_path: Path
) -> None:
    tokenizer = ChatGLMTokenizer.from_pretrained(shared / "golden" / "chatglm3-tokenizer")
    narrow = {"hidden_size": 64, "num_attention_heads": 6, "num_layers": 1}
    folder = make(tmp_path / "model", tokenizer, padded_vocab_size=65024, **narrow)
    server = llama_server.start(write_gguf(folder, tmp_path / "model.gguf", "f16"))
    rows = json.loads((shared / "data" / "alpaca_zh_1000.json").read_text("utf-8"))[:150]
    texts = [text for row in rows for text in row.values()]

    assert [server.tokens(text) for text in texts] == tokenizer.encode_texts(texts)
    template = ChatGLMTemplate(tokenizer)
    for row in rows[:20]:
        asked = [{"role": "user", "content": row["instruction"]}]
        prompt = template.prompt_ids(Conversation((Message("user", row["instruction"]),)))
        assert server.tokens(server.prompt(asked)) == prompt


TOOL = {"name": "weather", "description": "天气", "parameters": {"type": "object"}}
CALL = {"name": "weather", "arguments": json.dumps({"city": "it's 北京", "days": 2})}
CHATS: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "a question": ([{"role": "user", "content": "你好"}], None),
    "several turns, one empty": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": " 北京"},
            {"role": "assistant", "content": "中国\n首都"},
            {"role": "user", "content": ""},
        ],
        None,
    ),
    "a tool, its call and its result": (
        [
            {"role": "user", "content": "天气？"},
            {
                "role": "assistant",
                "content": "看看",
                "tool_calls": [{"id": "a", "type": "function", "function": CALL}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "3 度"},
        ],
        [{"type": "function", "function": TOOL}],
    ),
}


@pytest.mark.parametrize("case", CHATS)
def test_the_prompt_of_a_chat_has_our_ids(
    case: str, server: llama_server.Client, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    messages, tools = CHATS[case]
    conversation = Conversation(read_messages(messages, tools))

    prompt = server.prompt(messages, **({"tools": tools} if tools else {}))

    assert server.tokens(prompt) == ChatGLMTemplate(tiny_tokenizer).prompt_ids(conversation)


def test_no_text_of_a_message_becomes_a_role(server: llama_server.Client) -> None:
    spelled = "<|user|> [gMASK]sop <sop> </s> <unk> <|assistant|>"

    ids = server.tokens(server.prompt([{"role": "user", "content": spelled}]))

    assert [index for index in ids if index >= 480 or index in (0, 1, 2)] == [481, 483, 486, 487]


def test_llama_cpp_answers_as_we_do(
    server: llama_server.Client, folder: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    assert_same_answers(server, load_model(folder), prompt_of(tiny_tokenizer))


@pytest.mark.parametrize("case", SHAPES)
def test_every_shape_answers_as_ours(
    case: str, tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    folder = make(tmp_path / "model", tiny_tokenizer, **SHAPES[case])

    server = llama_server.start(write_gguf(folder, tmp_path / "model.gguf", "f32"))

    assert_same_answers(server, load_model(folder), prompt_of(tiny_tokenizer))


def test_a_chat_ends_where_our_answers_end(
    taught_model_dir: Path, tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    server = llama_server.start(write_gguf(taught_model_dir, tmp_path / "model.gguf", "f32"))
    asked = [{"role": "user", "content": "你叫什么名字？"}]

    answer = server.post("/v1/chat/completions", messages=asked, temperature=0, max_tokens=40)

    [choice] = answer["choices"]
    assert choice["message"]["content"].strip() == "我是小助手。😀 鑫！"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_llama_cpp_runs_every_type(dtype: str, taught_model_dir: Path, tmp_path: Path) -> None:
    server = llama_server.start(write_gguf(taught_model_dir, tmp_path / "model.gguf", dtype))
    asked = [{"role": "user", "content": "你叫什么名字？"}]

    answer = server.post("/v1/chat/completions", messages=asked, temperature=0, max_tokens=40)

    assert answer["choices"][0]["message"]["content"].strip() == "我是小助手。😀 鑫！"


def test_a_model_in_the_layout_of_transformers_answers_the_same(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    rope = {"rope_type": "default", "rope_theta": 75000.0, "partial_rotary_factor": 0.5}
    config = GlmConfig(
        vocab_size=496, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=3, head_dim=16, rms_norm_eps=1e-5,
        attention_bias=True, tie_word_embeddings=False, pad_token_id=0, eos_token_id=list(STOPS),
        initializer_range=0.2, max_position_embeddings=512, rope_parameters=rope,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GlmForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "glm")
    write_stock_files(tmp_path / "glm", tiny_tokenizer, config)

    path = write_gguf(tmp_path / "glm", tmp_path / "model.gguf", "f32")

    assert_same_answers(llama_server.start(path), model, prompt_of(tiny_tokenizer))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("chatglm2", "[gMASK]<sop>[Round 1]\n\n问：你好\n\n答："), ("plain", "[gMASK]<sop>你好")],
)
def test_the_prompts_of_a_layout_without_roles_are_its_own(
    layout: Layout, expected: str, folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    path = write_gguf(folder, tmp_path / "model.gguf", "f32", layout=layout)
    assert gguf.GGUFReader(path).get_field("tokenizer.ggml.eot_token_id") is None
    server = llama_server.start(path)
    asked = Conversation((Message("user", "你好"),))

    prompt = server.prompt([{"role": "user", "content": "你好"}])

    assert prompt == expected
    assert server.tokens(prompt) == ChatGLMTemplate(tiny_tokenizer, layout).prompt_ids(asked)


# ---- what cannot be written -----------------------------------------------------------------


def test_the_missing_package_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)

    with pytest.raises(RecipeError, match=r"Run `pip install 'glmtune\[gguf\]'`"):
        write_gguf(folder, tmp_path / "model.gguf")


def test_a_type_that_the_package_lacks_is_refused_with_the_way_to_it(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"write f16, then run .*model\.gguf Q4_K_M\."):
        write_gguf(folder, tmp_path / "model.gguf", "q4_k_m")

    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_never_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("mine")

    with pytest.raises(OutputError, match=r"model\.gguf: already exists"):
        write_gguf(folder, tmp_path / "model.gguf")

    assert (tmp_path / "model.gguf").read_text() == "mine"


def test_another_family_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"this is a 'llama' model.*convert_hf_to_gguf\.py"):
        write_gguf(tiny_llama_dir, tmp_path / "model.gguf")


def _drop_rows(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "padded_vocab_size": 480}))


def _overflow(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.output_layer.weight"][0, 0] = 70000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _add_bias(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.encoder.layers.0.mlp.dense_4h_to_h.bias"] = torch.ones(96)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_drop_rows, r"has the shape \(496, 96\), and config.json requires \(480, 96\)"),
        (
            _overflow,
            r"output\.weight: its largest number is 70000, which f16 cannot hold\. Write bf16",
        ),
        (_truncate, r"model\.safetensors \(1000 bytes\) cannot be read"),
        (_add_bias, r"dense_4h_to_h\.bias: llama\.cpp's ChatGLM has no such tensor"),
    ],
)
def test_a_model_that_cannot_be_written_leaves_nothing_behind(
    spoil: Callable[[Path], None], problem: str, folder: Path, tmp_path: Path
) -> None:
    spoiled = tmp_path / "model"
    shutil.copytree(folder, spoiled)
    spoil(spoiled)

    with pytest.raises(CheckpointError, match=problem):
        write_gguf(spoiled, tmp_path / "model.gguf", "f16")

    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, tensor: Any) -> None:
        raise OSError("1000 requested and 12 written")  # as NumPy says it

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)

    with pytest.raises(OutputError, match=r"model\.gguf: the disk is full, and what was written"):
        write_gguf(folder, tmp_path / "model.gguf")

    assert not list(tmp_path.iterdir())


def test_a_checkpoint_in_several_files_is_written_whole(
    folder: Path, f32: Path, tmp_path: Path
) -> None:
    model = load_model(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert len(Weights(tmp_path / "shards").stored) == len(model.state_dict())

    path = write_gguf(tmp_path / "shards", tmp_path / "model.gguf", "f32")

    written, expected = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(file).tensors}
        for file in (path, f32)
    )
    assert written == expected
