"""A model loads completely, or the error names in one sentence what is wrong with its folder."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.errors import CheckpointError
from glmtune.machine import fast_cpu_dtypes
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_config, load_frozen_model, load_model, load_tokenizer

TENSOR = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, in three files of safetensors with an index."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copy)
    (copy / "model.safetensors").unlink()
    model = ChatGLMForConditionalGeneration.from_pretrained(tiny_model_dir)
    model.save_pretrained(copy, max_shard_size="200KB")
    assert len(shards(copy)) > 2
    return copy


def shards(folder: Path) -> list[Path]:
    return sorted([*folder.glob("model-*.safetensors"), *folder.glob("pytorch_model-*.bin")])


def as_bin(folder: Path) -> None:
    """Turn a checkpoint of safetensors into one of `.bin` files."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    names = {}
    for path in shards(folder):
        number = path.stem.removeprefix("model-")
        names[path.name] = f"pytorch_model-{number}.bin"
        torch.save(load_file(path), folder / names[path.name])
        path.unlink()
    index["weight_map"] = {tensor: names[file] for tensor, file in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "model.safetensors.index.json").unlink()


def shard_with(folder: Path, tensor: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return folder / str(index["weight_map"][tensor])


@pytest.mark.parametrize("make", [lambda folder: None, as_bin], ids=["safetensors", "bin"])
def test_a_model_in_several_files_loads_completely(
    tiny_model_dir: Path, folder: Path, make: Callable[[Path], None]
) -> None:
    make(folder)
    expected = ChatGLMForConditionalGeneration.from_pretrained(tiny_model_dir).state_dict()

    model = load_model(folder)

    assert not model.training
    assert model.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(folder: Path) -> None:
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(str(folder), dtype=torch.float16).dtype == torch.float16


def test_the_tokenizer_is_that_of_the_folder(folder: Path) -> None:
    assert type(load_tokenizer(folder)) is ChatGLMTokenizer
    assert type(load_config(folder)) is ChatGLMConfig


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [lambda folder: None, as_bin], ids=["safetensors", "bin"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"{name} \(\d+ bytes\) cannot be read: .* damaged or incomplete; copy it again"),
        (empty, r"{name} \(0 bytes\) cannot be read: .* damaged or incomplete; copy it again"),
        (Path.unlink, r"{name} is missing, and the index lists it"),
    ],
)
def test_a_damaged_file_is_named(
    folder: Path, make: Callable[[Path], None], damage: Callable[[Path], None], message: str
) -> None:
    make(folder)
    shard = shards(folder)[1]
    damage(shard)

    with pytest.raises(CheckpointError, match=message.format(name=shard.name)):
        load_model(folder)


def test_a_missing_tensor_is_an_error_and_not_a_fresh_layer(folder: Path) -> None:
    path = shard_with(folder, TENSOR)
    tensors = load_file(path)
    del tensors[TENSOR]
    save_file(tensors, path, {"format": "pt"})

    with pytest.raises(CheckpointError, match=rf"the checkpoint lacks {TENSOR} \(1 missing"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    path = shard_with(folder, TENSOR)
    save_file({**load_file(path), TENSOR: torch.zeros(3, 4)}, path, {"format": "pt"})

    with pytest.raises(CheckpointError, match=rf"{TENSOR} has the shape \(3, 4\).*\(64, 96\)"):
        load_model(folder)


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def map_all_to(name: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        edit_json(index, weight_map=dict.fromkeys(weight_map, name))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (map_all_to(5), r"index\.json: transformer.* is in '5', expected the name of a"),
        (
            map_all_to(["a", "b"]),
            r"index\.json: .*expected the name of a file in the",
        ),
        (
            map_all_to("../model.safetensors"),
            "expected the name of a file in the same folder",
        ),
        (map_all_to("/etc/passwd"), "expected the name of a file in the same folder"),
        (map_all_to("weights.txt"), "weights.txt is missing, and the index lists it"),
        (map_all_to("config.json"), "config.json: the index lists this file, expected one that"),
        (map_all_to("none.safetensors"), "none.safetensors is missing, and the index lists it"),
        (
            lambda folder: edit_json(folder / "model.safetensors.index.json", weight_map=[1]),
            r"weight_map is \[1\], expected the file of every tensor",
        ),
        (
            lambda folder: edit_json(folder / "config.json", num_layers=1),
            "config.json has num_layers 1, but the weights have 2 layers.*Set num_layers to 2",
        ),
        (
            lambda folder: edit_json(folder / "config.json", num_layers=900),
            "the checkpoint lacks transformer.encoder.layers.10",
        ),
        (
            lambda folder: edit_json(folder / "config.json", ffn_hidden_size=2**24),
            r"has the shape .*16777216",
        ),
        (
            lambda folder: edit_json(folder / "config.json", padded_vocab_size=2**24),
            r"has the shape \(512, 64\).*16777216",
        ),
        (lambda folder: (folder / "generation_config.json").write_text("[]"), "generation_config"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused_before_anything_is_allocated(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)

    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_another_family_that_is_far_larger_than_its_files_is_refused(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama_dir, tmp_path / "llama")
    edit_json(tmp_path / "llama" / "config.json", vocab_size=2**24)

    with pytest.raises(
        CheckpointError, match=r"at least 1,073,7\d\d,\d\d\d numbers, and the weight"
    ):
        load_model(tmp_path / "llama")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [TENSOR, "transformer.encoder.final_layernorm.weight"])
def test_a_number_that_is_not_finite_is_refused_by_the_name_of_its_tensor(
    folder: Path, name: str, value: float
) -> None:
    path = shard_with(folder, name)
    tensors = load_file(path)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})

    for compute in (None, "int8"):
        with pytest.raises(CheckpointError, match=rf"{name} holds 1 of .* not finite"):
            load_frozen_model(folder, device=torch.device("cpu"), compute=compute)


def test_large_finite_numbers_are_not_taken_for_infinity(folder: Path) -> None:
    path = shard_with(folder, TENSOR)
    tensors = load_file(path)
    tensors[TENSOR].fill_(3e38)  # their sum overflows float32
    save_file(tensors, path, {"format": "pt"})

    assert load_model(folder).get_parameter(TENSOR).max() > 2e38


def test_weights_of_integers_are_refused_by_name(folder: Path) -> None:
    path = shard_with(folder, TENSOR)
    tensors = load_file(path)
    save_file({**tensors, TENSOR: tensors[TENSOR].to(torch.int8)}, path, {"format": "pt"})

    with pytest.raises(CheckpointError, match=rf"{TENSOR} is stored as int8, expected float64"):
        load_model(folder)


def test_a_bin_file_that_holds_a_list_is_refused(folder: Path) -> None:
    as_bin(folder)
    torch.save([1, 2], shards(folder)[0])

    with pytest.raises(CheckpointError, match=r"\.bin: expected tensors by name, got a list"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object, got a li"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}', "added_tokens_decoder is 5"),
        ("tokenizer_config.json", '{"eos_token": 7}', "eos_token is 7, expected a valid string"),
        ("special_tokens_map.json", '{"pad_token": [1]}', r"pad_token is \[1\], expected"),
        ("added_tokens.json", '{"<x>": "500"}', "<x> is '500', expected an id"),
        ("tokenizer.model", "", r"\(0 bytes\) is not a SentencePiece model"),
        ("tokenizer.model", "version https://git-lfs", "run `git lfs pull`"),
        (
            "config.json",
            '{"model_type": "chatglm", "quantization_bit": 4}',
            "quantization_bit is 4",
        ),
    ],
)
def test_the_error_for_an_unusable_tokenizer_gives_the_reason(
    folder: Path, name: str, content: str, message: str
) -> None:
    (folder / name).write_text(content)

    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def test_a_bin_file_that_holds_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    as_bin(folder)
    torch.save({"x": Trap(tmp_path / "witness")}, shards(folder)[0])

    with pytest.raises(CheckpointError, match="something other than tensors, which is never"):
        load_model(folder)
    assert not (tmp_path / "witness").exists()


def test_the_error_for_a_folder_without_weights_names_what_is_expected(folder: Path) -> None:
    for path in [*shards(folder), folder / "model.safetensors.index.json"]:
        path.unlink()

    with pytest.raises(CheckpointError, match=r"there are no weights: expected one of model.safe"):
        load_model(folder)


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "there is no such folder. Give the folder of a model"),
        ("./not-here", "there is no such folder. Give the folder of a model"),
        ("a/b/c", "there is no such folder. Give the folder of a model"),
        ("x" * 300, "cannot be the name of a file or folder: it has 300 characters"),
        ("a/" * 3000, "cannot be the name of a file or folder: it has 6,000 characters"),
        ("a\0b", r"'a\\x00b' cannot be the name of a file or folder"),
    ],
)
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(
    load: Callable[[str], Any], name: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(name)


def test_a_file_in_place_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is a file, expected the folder"):
        load_model(folder / "config.json")


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(CheckpointError, match="holds an adapter, not a model"):
        load_model(tmp_path)


def test_the_error_for_a_folder_without_config_lists_its_content(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("")

    with pytest.raises(
        CheckpointError, match=r"no config.json.*It holds: readme.txt.*Give the folder that a model"
    ):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "chat', r"cannot be read as JSON .*half written"),
        ("[]", "expected a JSON object, got a list"),
        ('{"model_type": "nonsense"}', "model type `nonsense`"),
        ('{"model_type": "chatglm", "num_layers": "28"}', "'num_layers' expected int, got str"),
        ('{"model_type": "chatglm", "inner_hidden_size": 16384}', r"ChatGLM-6B \(v1\)"),
        ('{"model_type": "chatglm", "quantization_bit": 4}', "quantization_bit is 4"),
        ('{"model_type": "chatglm", "padded_vocab_size": 151552}', "glm-4-9b-chat-hf .or glm-4-9b"),
        (
            '{"model_type": "chatglm", "padded_vocab_size": 151552, "seq_length": 1048576}',
            "glm-4-9b-chat-1m-hf",
        ),
        ('{"model_type": "chatglm", "rmsnorm": false}', "rmsnorm is False.*expected True"),
        ('{"model_type": "chatglm", "num_layers": 1000000000}', "num_layers is 1000000000, expect"),
        ('{"model_type": "chatglm", "num_layers": true}', "'num_layers'|num_layers"),
        ('{"model_type": "chatglm", "num_layers": 2.0}', "'num_layers' expected int, got float"),
        ('{"model_type": "chatglm", "layernorm_epsilon": -1e-5}', "layernorm_epsilon is -1e-05"),
        ('{"model_type": "chatglm", "layernorm_epsilon": NaN}', "layernorm_epsilon is nan"),
        ('{"model_type": "chatglm", "rope_ratio": -50}', "rope_ratio is -50, expected a number"),
        ('{"model_type": "chatglm", "rope_ratio": true}', "'rope_ratio'"),
        ('{"model_type": "chatglm", "kv_channels": 6}', "kv_channels is 6, expected a multiple"),
        (
            '{"model_type": "chatglm", "multi_query_group_num": 0}',
            "multi_query_group_num is 0, exp",
        ),
        (
            '{"model_type": "chatglm", "hidden_dropout": 1.5}',
            "hidden_dropout is 1.5, expected a sh",
        ),
        ('{"model_type": "chatglm", "torch_dtype": "int8"}', "torch_dtype is 'int8', expected one"),
        ('{"model_type": "chatglm", "num_labels": 1000000000}', "num_labels is 1000000000"),
        ('{"model_type": ["chatglm"]}', r"model_type is \['chatglm'\], expected a valid string"),
        ('{"model_type": "\\ud800"}', "half a surrogate pair"),
        ('{"model_type": "llama", "hidden_size": -4}', "hidden_size is -4, expected 0 to"),
        (
            '{"model_type": "llama", "num_hidden_layers": 1e12}',
            "num_hidden_layers is 1000000000000",
        ),
        ('{"model_type": "llama", "num_attention_heads": "x"}', "'num_attention_heads'"),
        ('{"x": ' * 100 + "1" + "}" * 100, "nested more than 64 levels"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        (
            '{"model_type": "nonsense", "auto_map": {"AutoConfig": "configuration.Nonsense"}}',
            "comes with its own code, which is never run here",
        ),
    ],
)
def test_the_error_for_an_unusable_config_gives_the_reason(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(content)

    for load in (load_config, load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(tmp_path)
        assert "Error:" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_the_error_for_a_folder_without_tokenizer_names_what_is_needed(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()

    with pytest.raises(CheckpointError, match=r"tokenizer.*tokenizer\.model"):
        load_tokenizer(folder)


def test_attention_that_is_not_installed_is_refused(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"'flash_attention_2' cannot be used.*implementation=packed"
    ):
        load_model(folder, attn_implementation="flash_attention_2")


def test_another_family_of_transformers_loads_too(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)

    assert type(load_model(tmp_path)) is LlamaForCausalLM


def test_a_family_that_caps_its_scores_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    from transformers import Gemma2Config

    Gemma2Config().save_pretrained(tmp_path)  # there are no weights to read

    with pytest.raises(CheckpointError, match="'gemma2' does more to its attention scores"):
        load_model(tmp_path, attn_implementation="packed")


def test_a_hub_id_loads_without_network_when_it_is_cached(folder: Path, tmp_path: Path) -> None:
    revision = "0123456789012345678901234567890123456789"
    repository = tmp_path / "hub" / "models--someone--tiny-chatglm"
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    script = (
        "from glmtune.model.load import *\n"
        "print(type(load_tokenizer('someone/tiny-chatglm')).__name__)\n"
        "print(type(load_model('someone/tiny-chatglm')).__name__)\n"
        "try: load_model('someone/other')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )

    tokenizer, model, error = result.stdout.splitlines()
    assert (tokenizer, model) == ("ChatGLMTokenizer", "ChatGLMForConditionalGeneration")
    assert error.startswith("CheckpointError someone/other: there is no such folder here, and as")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_dtype_that_the_cpu_lacks_is_kept_in_memory_and_computed_in_float32(
    folder: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored = getattr(torch, dtype)
    able = fast_cpu_dtypes()
    if stored in able or torch.bfloat16 in able:
        pytest.skip(f"this CPU has arithmetic for {dtype}, or for bfloat16 in its place")

    with caplog.at_level(logging.WARNING):
        model = load_frozen_model(folder, dtype=dtype, device=torch.device("cpu"))

    assert f"no arithmetic for {dtype}" in caplog.text
    assert model.get_parameter(TENSOR).dtype == stored
    assert model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.float32


def test_float16_becomes_bfloat16_where_the_cpu_has_only_that(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    able = fast_cpu_dtypes()
    if torch.bfloat16 not in able or torch.float16 in able:
        pytest.skip("this CPU has no arithmetic for bfloat16, or has it for float16 too")

    with caplog.at_level(logging.WARNING):
        model = load_frozen_model(folder, dtype="float16", device=torch.device("cpu"))

    assert model.dtype == torch.bfloat16
    assert "using bfloat16 instead" in caplog.text


def test_the_dtype_of_the_checkpoint_is_the_default(folder: Path) -> None:
    model = load_frozen_model(folder, device=torch.device("cpu"))

    assert model.dtype == torch.float32


def test_importing_load_imports_nothing_heavy() -> None:
    script = "import sys, glmtune.model.load; print({'torch', 'transformers'} & set(sys.modules))"

    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "set()"


PEAK = """
import sys
from pathlib import Path
from glmtune.model.load import load_model

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))

small, large, dtype = sys.argv[1:]
load_model(small)  # so that the libraries do not count
Path("/proc/self/clear_refs").write_text("5")
before, anonymous = status("VmRSS"), status("RssAnon")
model = load_model(large, dtype=dtype)
total = sum(float(p.float().sum()) for p in model.parameters())  # touches every page
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print((status("VmHWM") - before) / weights, (status("RssAnon") - anonymous) / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("make", [lambda folder: None, as_bin], ids=["safetensors", "bin"])
def test_loading_makes_no_second_copy_of_the_weights(
    tiny_model_dir: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    config = ChatGLMConfig(
        num_layers=16,
        hidden_size=1024,
        ffn_hidden_size=3424,
        num_attention_heads=8,
        multi_query_attention=True,
        multi_query_group_num=2,
        padded_vocab_size=8192,
    )
    model = ChatGLMForConditionalGeneration(config).to(torch.float16)
    assert sum(2 * p.numel() for p in model.parameters()) > 450e6
    model.save_pretrained(tmp_path, max_shard_size="150MB")
    make(tmp_path)

    def peak(dtype: str) -> tuple[float, float]:
        """Give the highest resident memory, and what of it is not the file's, per weight byte."""
        result = subprocess.run(
            [sys.executable, "-c", PEAK, str(tiny_model_dir), str(tmp_path), dtype],
            capture_output=True,
            text=True,
            check=True,
        )
        resident, own = map(float, result.stdout.split())
        return resident, own

    as_stored, _ = peak("float16")
    _, converted = peak("bfloat16")

    assert 0.9 < as_stored < 1.25
    assert 0.9 < converted < 1.25  # the file's own pages come on top, which the system takes back
