"""config.json keeps its published names, and the files of other networks are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig

ALIASES = {
    "num_hidden_layers": "num_layers",
    "vocab_size": "padded_vocab_size",
    "intermediate_size": "ffn_hidden_size",
    "head_dim": "kv_channels",
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layernorm_epsilon",
}


def saved(config: ChatGLMConfig, folder: Path) -> dict[str, Any]:
    config.save_pretrained(folder)
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


def test_every_field_of_the_published_file_is_saved_as_it_was(golden: Path, tmp_path: Path) -> None:
    published = json.loads((golden / "tiny-model" / "config.json").read_text(encoding="utf-8"))
    published["dtype"] = published.pop("torch_dtype")  # which transformers has renamed
    del published["transformers_version"]

    written = saved(ChatGLMConfig.from_pretrained(golden / "tiny-model"), tmp_path)

    assert len(published) > 20
    assert {name: written[name] for name in published} == published


def test_the_names_of_transformers_are_read_and_set_and_never_written(tmp_path: Path) -> None:
    config = ChatGLMConfig(num_hidden_layers=3, vocab_size=512)
    config.head_dim = 16

    written = saved(config, tmp_path)

    assert (config.num_layers, config.padded_vocab_size, config.kv_channels) == (3, 512, 16)
    assert (written["num_layers"], written["padded_vocab_size"], written["kv_channels"]) == (
        3,
        512,
        16,
    )
    for alias, original in ALIASES.items():
        assert getattr(config, alias) == getattr(config, original)
        assert alias not in written
    assert "num_key_value_heads" not in written


def test_key_and_value_heads_are_counted_by_group_only_when_they_are_shared() -> None:
    shared = ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2)
    separate = ChatGLMConfig(multi_query_attention=False, multi_query_group_num=2)

    assert (shared.num_key_value_heads, separate.num_key_value_heads) == (2, 32)


def test_the_class_defaults_are_those_of_the_original_class() -> None:
    config = ChatGLMConfig()

    assert config.seq_length == 2048
    assert config.add_qkv_bias is False
    assert config.multi_query_attention is False
    assert config.multi_query_group_num == 1
    assert (config.num_layers, config.hidden_size, config.padded_vocab_size) == (28, 4096, 65024)


def test_the_torch_dtype_of_old_files_is_read() -> None:
    assert ChatGLMConfig(torch_dtype="float16").dtype == torch.float16


def test_fields_that_are_not_known_are_kept(tmp_path: Path) -> None:
    assert saved(ChatGLMConfig(interleaved_qkv=False), tmp_path)["interleaved_qkv"] is False


def test_a_saved_config_does_not_name_code_of_the_folder_it_came_from(tmp_path: Path) -> None:
    config = ChatGLMConfig(auto_map={"AutoModel": "modeling_chatglm.ChatGLMModel"})

    assert "auto_map" not in saved(config, tmp_path)


@pytest.mark.parametrize("field", ["position_encoding_2d", "inner_hidden_size"])
def test_a_v1_checkpoint_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"v1.*{field}.*Use a chatglm2-6b or chatglm3-6b"):
        ChatGLMConfig(**{field: 1})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("quantization_bit", 4, "quantization_bit is 4.*-int4.*half precision"),
        ("padded_vocab_size", 151552, "GLM-4 in its original layout.*glm-4-9b-chat-hf"),
        ("rmsnorm", False, "rmsnorm is False.*expected True"),
        ("post_layer_norm", False, "post_layer_norm is False.*expected True"),
        (
            "apply_residual_connection_post_layernorm",
            True,
            "apply_residual_connection_post_layernorm is True.*expected False",
        ),
        ("fp32_residual_connection", True, "fp32_residual_connection is True.*expected False"),
        ("tie_word_embeddings", True, "tie_word_embeddings is True.*expected False"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        ChatGLMConfig(**{field: value})


def test_query_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(StrictDataclassError, match=r"32, which is not a multiple of.*5"):
        ChatGLMConfig(multi_query_attention=True, multi_query_group_num=5)


def test_the_32k_model_of_chatglm2_is_recognized_by_its_name_and_saved_unchanged(
    tmp_path: Path,
) -> None:
    published = {"_name_or_path": "THUDM/chatglm2-6b-32k", "model_type": "chatglm", "rope_ratio": 2}
    (tmp_path / "config.json").write_text(json.dumps(published), encoding="utf-8")

    config = ChatGLMConfig.from_pretrained(tmp_path)

    assert config.rope_interpolation
    assert saved(config, tmp_path / "again")["rope_interpolation"]
    assert not ChatGLMConfig(
        rope_ratio=50, _name_or_path="THUDM/chatglm3-6b-32k"
    ).rope_interpolation
