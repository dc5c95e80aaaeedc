"""A LoRA adapter in a GGUF changes llama.cpp's answers as it changes ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel, PromptTuningConfig
from tests.use.export import llama_server
from tests.use.export.llama_server import assert_same_answers, greedy, make, prompt_of, save_lora

from glmtune.errors import CheckpointError, OutputError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_model
from glmtune.use.export.gguf import write_gguf
from glmtune.use.export.lora_gguf import write_lora_gguf

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

ALL = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
CONFIGS: dict[str, dict[str, Any]] = {
    "one layer": {"target_modules": ["query_key_value"]},
    "all layers": {"target_modules": ALL},
    "rsLoRA": {"target_modules": ALL, "use_rslora": True},
    "ranks and alphas of their own": {
        "target_modules": ALL,
        "rank_pattern": {"1.mlp.dense_4h_to_h": 8},
        "alpha_pattern": {"dense_h_to_4h": 3, "0.self_attention.dense": 40},
    },
}
BASES: dict[str, dict[str, Any]] = {
    "three groups": {"rope_ratio": 7.5},
    "no groups": {"multi_query_attention": False},
    "heads wider than the hidden state": {"hidden_size": 64},
    "heads narrower than the hidden state": {"hidden_size": 128},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: ChatGLMTokenizer) -> Path:
    return make(tmp_path_factory.mktemp("base"), tiny_tokenizer, rope_ratio=7.5)


@pytest.fixture(scope="module")
def model_gguf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(base, tmp_path_factory.mktemp("gguf") / "model.gguf", "f32")


@pytest.mark.parametrize("case", CONFIGS)
def test_an_adapter_changes_the_answers_of_llama_cpp_as_ours(
    case: str, base: Path, model_gguf: Path, tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    model = save_lora(base, tmp_path / "adapter", **CONFIGS[case])
    ids = prompt_of(tiny_tokenizer)

    lora = write_lora_gguf(tmp_path / "adapter", base, tmp_path / "lora.gguf")

    assert_same_answers(llama_server.start(model_gguf, lora), model, ids)
    with model.disable_adapter():
        plain = greedy(model, ids, 20)
    assert greedy(model, ids, 20) != plain, "the adapter changes nothing, so the test shows nothing"


@pytest.mark.parametrize("case", BASES)
def test_an_adapter_follows_the_rows_of_its_base(
    case: str, tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    folder = make(tmp_path / "base", tiny_tokenizer, **BASES[case])
    model = save_lora(folder, tmp_path / "adapter", target_modules=ALL)

    server = llama_server.start(
        write_gguf(folder, tmp_path / "model.gguf", "f32"),
        write_lora_gguf(tmp_path / "adapter", folder, tmp_path / "lora.gguf"),
    )

    assert_same_answers(server, model, prompt_of(tiny_tokenizer))


def test_tensors_are_those_of_the_adapter_to_the_byte(base: Path, tmp_path: Path) -> None:
    model = save_lora(base, tmp_path / "adapter", target_modules=["query_key_value"])
    stored = {name: value for name, value in model.named_parameters() if "lora_" in name}

    reader = gguf.GGUFReader(write_lora_gguf(tmp_path / "adapter", base, tmp_path / "lora.gguf"))

    assert reader.get_field("general.type").contents() == "adapter"
    assert reader.get_field("adapter.type").contents() == "lora"
    assert reader.get_field("adapter.lora.alpha").contents() == 16.0
    tensors = {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}
    inner = "base_model.model.transformer.encoder.layers.{}.self_attention.query_key_value"
    assert tensors == {
        f"blk.{layer}.attn_qkv.weight.lora_{half.lower()}": stored[
            f"{inner.format(layer)}.lora_{half}.default.weight"
        ].detach().numpy().tobytes()
        for layer in range(2)
        for half in "AB"
    }  # fmt: skip


def _edit(**fields: Any) -> Callable[[Path], None]:
    def spoil(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return spoil


def _lose_a_half(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            _edit(use_dora=True),
            r"it is a DoRA adapter, and llama\.cpp adds plain LoRA only\. Merge",
        ),
        (_edit(bias="all"), r"it has trained biases \(bias: all\)"),
        (_edit(modules_to_save=["output_layer"]), r"it holds complete layers \(output_layer\)"),
        (_edit(init_lora_weights="pissa"), r"it changes the base when it is loaded \(pissa\)"),
        (_edit(lora_alpha=0), r"its lora_alpha is 0"),
        (_lose_a_half, r"query_key_value lack one of lora_A and lora_B"),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused_with_the_way_out(
    spoil: Callable[[Path], None], problem: str, base: Path, tmp_path: Path
) -> None:
    save_lora(base, tmp_path / "adapter", target_modules=["query_key_value"])
    spoil(tmp_path / "adapter")

    with pytest.raises(CheckpointError, match=problem):
        write_lora_gguf(tmp_path / "adapter", base, tmp_path / "lora.gguf")

    assert not (tmp_path / "lora.gguf").exists()


def test_another_kind_of_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    PeftModel(load_model(base), config).save_pretrained(tmp_path / "adapter")

    with pytest.raises(CheckpointError, match=r"it is a PROMPT_TUNING adapter"):
        write_lora_gguf(tmp_path / "adapter", base, tmp_path / "lora.gguf")


def test_an_adapted_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    save_lora(base, tmp_path / "adapter", target_modules=["word_embeddings"])

    with pytest.raises(CheckpointError, match=r"has no place for .*lora_embedding_A"):
        write_lora_gguf(tmp_path / "adapter", base, tmp_path / "lora.gguf")


def test_another_base_is_refused_with_both_shapes(
    base: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    save_lora(base, tmp_path / "adapter", target_modules=["query_key_value"])

    with pytest.raises(CheckpointError, match=r"of 192 x 96, and .* has 128 x 64\. Give the base"):
        write_lora_gguf(tmp_path / "adapter", tiny_model_dir, tmp_path / "lora.gguf")


def test_an_existing_file_is_never_written_over(base: Path, tmp_path: Path) -> None:
    save_lora(base, tmp_path / "adapter", target_modules=["query_key_value"])
    (tmp_path / "lora.gguf").write_text("mine")

    with pytest.raises(OutputError, match="already exists"):
        write_lora_gguf(tmp_path / "adapter", base, tmp_path / "lora.gguf")
