"""`glmtune info` shows what a folder is made of, and names what is damaged."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmConfig
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import CheckpointError, RecipeError
from glmtune.inspect.adapter import describe_adapter
from glmtune.inspect.checkpoint import describe_model, group_parameters
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.select import template_for


def run_info(*arguments: str | Path | int) -> str:
    result = CliRunner().invoke(
        app, ["info", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def config_of_6b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of chatglm3-6b, and nothing else."""
    folder = tmp_path_factory.mktemp("chatglm3-6b")
    ChatGLMConfig(
        seq_length=8192, add_qkv_bias=True, multi_query_attention=True, multi_query_group_num=2
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A LoRA adapter in the tutorial layout whose B is not zero."""
    model = lora.attach(load_model(tiny_model_dir), LoraSection(r=4, lora_alpha=8))
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.fill_(0.5)
    template = template_for(load_tokenizer(tiny_model_dir), "tutorial")
    lora.save(model, tmp_path / "adapter", template)
    return tmp_path / "adapter"


def test_the_numbers_of_the_6b_model_are_those_that_are_published(config_of_6b: Path) -> None:
    facts = describe_model(str(config_of_6b))

    assert (facts.num_tensors, facts.numel) == (199, 6_243_584_000)
    assert (facts.lora.trainable, facts.lora.total) == (1_949_696, 6_245_533_696)
    assert facts.lora.target_modules == ("query_key_value",)
    assert facts.lora.file_bytes == 4 * 1_949_696
    assert facts.memory_bytes["float32"] == 4 * 6_243_584_000
    # two embeddings of 266,338,304 and the vectors stay in 16 bit
    layers = 28 * (4608 * 4096 + 4096 * 4096 + 27392 * 4096 + 4096 * 13696)
    assert facts.memory_bytes["4 bit"] == layers // 2 + 2 * (6_243_584_000 - layers)
    assert facts.cache_bytes_per_token == 2 * 28 * 2 * 128 * 2
    assert facts.context_length == 8192


def test_layers_are_shown_in_one_line(config_of_6b: Path) -> None:
    shown = run_info(config_of_6b)

    [line] = [line for line in shown.splitlines() if "mlp.dense_4h_to_h" in line]
    assert line.split() == [
        "transformer.encoder.layers.{0..27}.mlp.dense_4h_to_h.weight",
        *("4096", "x", "13696", "-", "28", "1,570,766,848"),
    ]
    assert "199 tensors, 6,243,584,000 numbers" in shown
    assert "trains 1,949,696 of 6,245,533,696 numbers (0.0312 %)" in shown
    assert "tokenizer.model" in shown  # which this folder has not


def test_another_lora_is_estimated_on_request(config_of_6b: Path) -> None:
    shown = run_info(config_of_6b, "--lora-r", 16, "--target-modules", "query_key_value, dense")

    trainable = 28 * 16 * (4096 + 4608 + 4096 + 4096)
    assert "r 16 on dense, query_key_value" in shown
    assert f"trains {trainable:,} of" in shown


def test_a_layer_that_is_not_there_is_named(config_of_6b: Path) -> None:
    with pytest.raises(RecipeError, match=r"q_proj.*dense_4h_to_h"):
        run_info(config_of_6b, "--target-modules", "q_proj")


def test_dtypes_are_those_in_the_files(golden: Path) -> None:
    expected = {"": "float32", "sharded-bin": "float16", "sharded-safetensors": "float16"}
    for folder, dtype in expected.items():
        facts = describe_model(str(golden / "tiny-model" / folder))

        assert {group.dtype for group in facts.groups} == {dtype}
        assert facts.numel == 158_528
        assert facts.buffers == ("transformer.rotary_pos_emb.inv_freq",)
        assert facts.unexpected == ()


def test_the_tokenizer_shows_how_prompts_are_built(tiny_model_dir: Path) -> None:
    shown = run_info(tiny_model_dir)

    template = template_for(load_tokenizer(tiny_model_dir))
    assert "ChatGLMTokenizer, 489 ids" in shown
    assert "stops at     2 </s>, 486 <|user|>, 488 <|observation|>" in shown
    assert f"layout official, fingerprint {template.fingerprint[:12]}" in shown


def test_json_holds_the_same(tiny_model_dir: Path) -> None:
    facts = json.loads(run_info(tiny_model_dir, "--json"))

    assert facts["numel"] == describe_model(str(tiny_model_dir)).numel
    assert facts["tokenizer"]["stop_ids"] == [2, 486, 488]


def test_a_chatglm_is_described_without_libraries_for_tensors(tiny_model_dir: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from glmtune.cli.main import app\n"
        "result = CliRunner().invoke(app, ['info', sys.argv[1]])\n"
        "assert 'fingerprint' in result.output, result.output\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model_dir)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"


def test_a_model_without_a_tokenizer_is_described_without_libraries_for_tensors(
    config_of_6b: Path,
) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from glmtune.cli.main import app\n"
        "result = CliRunner().invoke(app, ['info', sys.argv[1]])\n"
        "assert 'has no tokenizer.model, which ChatGLM needs' in result.output, result.output\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    environment = {**os.environ, "COLUMNS": "300"}

    done = subprocess.run(
        [sys.executable, "-c", code, str(config_of_6b)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )

    assert done.stdout.strip() == "[]"


def test_tensors_that_the_files_lack_or_have_too_many_are_shown(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    tensors = load_file(tiny_model_dir / "model.safetensors")
    tensors["stray"] = tensors.pop("transformer.output_layer.weight")
    save_file(tensors, tmp_path / "model.safetensors")

    shown = run_info(tmp_path)

    assert "1 tensors are not in the files" in shown
    assert "1 stored tensors that are not used: stray" in shown


def test_layers_that_differ_are_not_grouped() -> None:
    parameters = {f"layers.{i}.weight": (4 if i == 2 else 8,) for i in range(5)}

    names = [group.name for group in group_parameters(parameters, {})]

    assert names == ["layers.{0,1,3,4}.weight", "layers.2.weight"]


def test_an_adapter_shows_its_base_model_and_layout(
    tiny_model_dir: Path, adapter_dir: Path
) -> None:
    shown = run_info(adapter_dir)

    assert f"base         {tiny_model_dir}" in shown
    assert "r 4, lora_alpha 8, on query_key_value" in shown
    assert "family chatglm3, layout tutorial, fingerprint" in shown
    assert f"4 tensors, {2 * 4 * (64 + 128):,} numbers, float32" in shown
    assert "yes, all 2 layers" in shown
    norms = describe_adapter(adapter_dir).norms
    assert list(norms.values()) == pytest.approx([0.5 * (128 * 4) ** 0.5] * 2)


def test_an_adapter_layer_without_effect_is_found(adapter_dir: Path) -> None:
    file = adapter_dir / "adapter_model.safetensors"
    tensors = load_file(file)
    [name] = [name for name in tensors if "layers.1." in name and "lora_B" in name]
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, file)

    shown = run_info(adapter_dir)

    assert "no: 1 of 2 layers change nothing" in shown
    assert "adapter_model.safetensors is not what was written" in shown
    assert "(dead)" in shown


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "no adapter_model.safetensors",
        ),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    prepare(tmp_path)

    with pytest.raises(CheckpointError, match=message):
        run_info(tmp_path)


def test_damaged_weights_are_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    whole = (tiny_model_dir / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(CheckpointError, match=r"model\.safetensors \(\d+ bytes\) cannot be rea"):
        run_info(tmp_path)

    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors is missing"):
        run_info(tmp_path)


def test_a_family_that_peft_does_not_know_is_described(tmp_path: Path) -> None:
    """Such as glm, in whose layout `glmtune export --to glm` writes."""
    GlmConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
    ).save_pretrained(tmp_path)

    facts = describe_model(str(tmp_path))

    assert facts.kind == "glm (GlmForCausalLM)"
    assert {"q_proj", "gate_up_proj"} <= set(facts.lora.target_modules)
    assert "lm_head" not in facts.lora.target_modules
