"""A ChatGLM is described without its network as with it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import RecipeError
from glmtune.inspect import checkpoint, network
from glmtune.inspect.checkpoint import describe_model
from glmtune.inspect.network import describe_network

SMALL = {
    "model_type": "chatglm",
    "num_layers": 2,
    "padded_vocab_size": 96,
    "hidden_size": 24,
    "ffn_hidden_size": 40,
    "kv_channels": 8,
    "num_attention_heads": 4,
}


def build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe models by their networks and complete tokenizers from now on."""
    for module in (network, checkpoint):
        monkeypatch.setattr(module, "read_outline", lambda folder: None)


def refuse_to_build(*_: object) -> None:
    raise AssertionError("the network is built")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_bias_linear": True},
        {"multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True},
        {"pre_seq_len": 5, "prefix_projection": True},
    ],
)
@pytest.mark.parametrize(
    "targets", [None, ("dense",), ("dense_4h_to_h", "query_key_value", "dense", "dense_h_to_4h")]
)
def test_an_adapter_costs_the_same(
    settings: dict[str, Any],
    targets: tuple[str, ...] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **settings}))
    with monkeypatch.context() as patch:
        patch.setattr(network, "_built", refuse_to_build)
        outlined = describe_network(str(tmp_path), 3, targets)
    build(monkeypatch)

    assert outlined == describe_network(str(tmp_path), 3, targets)


@pytest.mark.parametrize("folder", ["nano", "tiny", "tiny-model", "sharded-safetensors"])
def test_all_facts_are_those_of_the_network(
    folder: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder == "tiny":
        folder = str(request.getfixturevalue("tiny_model_dir"))
    elif folder != "nano":
        golden = request.getfixturevalue("golden")
        folder = str(golden / "tiny-model" / folder.replace("tiny-model", ""))
    facts = describe_model(folder)
    build(monkeypatch)

    built = describe_model(folder)

    assert json.dumps(asdict(facts)) == json.dumps(asdict(built))
    assert all(group.stored_bytes for group in facts.groups)


def test_targets_that_peft_must_match_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))

    with pytest.raises(RecipeError, match="q_proj"):
        describe_network(str(tmp_path), 8, ("q_proj",))
    assert describe_network(str(tmp_path), 8, ("output_layer",)).lora.trainable == 8 * (24 + 96)
