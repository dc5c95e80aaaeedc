"""`glmtune export --to gguf, lora-gguf, ollama`: written, read back, and answered by llama.cpp."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig
from tests.use.export import llama_server
from tests.use.export.odd_model import ALL_LINEAR, MakeAdapter, MakeModel

from glmtune.errors import CheckpointError, RecipeError
from glmtune.use.export import k_quants, llama_cpp, ollama
from glmtune.use.export.folder import ProofError
from glmtune.use.export.gguf import write_gguf_of
from glmtune.use.export.proofs import GREEDY
from glmtune.use.export.run import Exported, export

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytest.importorskip("xllamacpp", reason="llama.cpp's server (xllamacpp) is not installed")


def verdicts(exported: Exported) -> dict[str, str]:
    return {check.name: check.verdict for check in exported.checks}


ALL_PASSED = {
    llama_cpp.TENSORS: "passed",
    llama_cpp.LLAMA_PROMPTS: "passed",
    GREEDY: "passed",
}


def test_an_adapter_becomes_one_gguf_that_llama_cpp_answers_from_as_we_do(
    odd_adapter_dir: Path, tmp_path: Path
) -> None:
    done = export(odd_adapter_dir, tmp_path / "out", "gguf")

    assert verdicts(done) == ALL_PASSED
    assert done.start == f"llama-server -m {tmp_path}/out/model.gguf --port 8080"
    report = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert report["status"] == "complete"
    assert report["format"] == "gguf"


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_fewer_bits_are_within_one_rounding_of_the_source(
    kind: str, odd_model_dir: Path, tmp_path: Path
) -> None:
    done = export(odd_model_dir, tmp_path / "out", "gguf", quantize=kind)

    assert verdicts(done)[llama_cpp.TENSORS] == "passed"
    types = {each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert kind.upper() in types


def test_a_lora_stays_one_over_a_gguf_of_its_base(
    odd_model_dir: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=ALL_LINEAR, use_rslora=True, task_type="CAUSAL_LM")

    done = export(make_adapter(odd_model_dir, config), tmp_path / "out", "lora-gguf")

    assert verdicts(done) == {
        llama_cpp.LAYERS: "passed",
        llama_cpp.LLAMA_PROMPTS: "passed",
        GREEDY: "passed",
    }
    assert f"--lora {tmp_path}/out/lora.gguf" in done.start
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # its base is removed


def test_ollama_gets_a_model_and_a_modelfile(odd_adapter_dir: Path, tmp_path: Path) -> None:
    done = export(odd_adapter_dir, tmp_path / "out", "ollama")

    assert verdicts(done) == ALL_PASSED
    assert "FROM ./model.gguf" in (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert done.start.startswith("ollama create out -f")


def test_a_type_follows_the_dtype_that_was_asked_for_or_the_base(
    make_model: MakeModel, tmp_path: Path
) -> None:
    import torch

    half = make_model(torch.bfloat16)
    for asked, expected in (
        ({}, "BF16"),
        ({"dtype": "float16"}, "F16"),
        ({"dtype": "float32"}, "F32"),
    ):
        target = tmp_path / expected
        export(half, target, "gguf", prove=False, **asked)  # type: ignore[arg-type]
        tensors = gguf.GGUFReader(target / "model.gguf").tensors
        assert {each.tensor_type.name for each in tensors if each.name == "output.weight"} == {
            expected
        }


def test_few_bits_are_made_by_llama_cpp_where_its_library_is_installed(
    make_model: MakeModel, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = make_model(hidden_size=256, ffn_hidden_size=512)

    done = export(model, tmp_path / "out", "gguf", quantize="q4_k_m")

    assert verdicts(done) == {**ALL_PASSED, GREEDY: "not run"}
    types = {each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert "Q4_K" in types
    assert not (tmp_path / "out" / llama_cpp.UNQUANTIZED).exists()


def test_few_bits_without_the_library_name_both_ways_to_get_them(
    odd_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(k_quants, "find_spec", lambda name: None)

    with pytest.raises(RecipeError, match=r"pip install llama-cpp-python.*llama-quantize"):
        export(odd_model_dir, tmp_path / "out", "gguf", quantize="Q4_K_M")


def _drop_a_bit(folder: Path) -> None:
    path = folder / ollama.MODEL
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    content = bytearray(path.read_bytes())
    content[tensor.data_offset + 3] ^= 0x40
    path.write_bytes(content)


def test_a_file_that_differs_in_one_bit_fails_and_is_not_presented_as_good(
    odd_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_gguf_of

    def write_and_damage(out: Path, **fields: Any) -> Path:
        write(out, **fields)
        _drop_a_bit(out.parent)
        return out

    monkeypatch.setattr(llama_cpp, "write_gguf_of", write_and_damage)

    with pytest.raises(ProofError, match=r"wrong: blk\.1\.ffn_up\.weight"):
        export(odd_model_dir, tmp_path / "out", "gguf")

    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.failed").is_dir()


def test_without_llama_cpp_nothing_is_claimed_of_it(
    odd_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "llama" in name else name)

    done = export(odd_model_dir, tmp_path / "out", "gguf")

    assert verdicts(done) == {
        llama_cpp.TENSORS: "passed",
        llama_cpp.LLAMA_PROMPTS: "not run",
        GREEDY: "not run",
    }


def test_what_does_not_fit_together_is_refused_before_anything_is_written(
    odd_model_dir: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    ia3 = make_adapter(
        odd_model_dir,
        IA3Config(
            target_modules=["query_key_value"], feedforward_modules=[], task_type="CAUSAL_LM"
        ),
    )
    with pytest.raises(RecipeError, match="only --to gguf and --to ollama"):
        export(odd_model_dir, target, "glm", quantize="q8_0")
    with pytest.raises(RecipeError, match="Keep one of them"):
        export(odd_model_dir, target, "gguf", quantize="q8_0", dtype="float16")
    with pytest.raises(RecipeError, match="cannot be written here"):
        export(odd_model_dir, target, "gguf", quantize="q7")
    with pytest.raises(CheckpointError, match="takes an adapter"):
        export(odd_model_dir, target, "lora-gguf")
    with pytest.raises(CheckpointError, match="takes a plain LoRA"):
        export(ia3, target, "lora-gguf")
    assert list(tmp_path.iterdir()) == []


def test_the_openai_client_gets_our_answer_from_the_served_gguf(
    taught_model_dir: Path, tmp_path: Path
) -> None:
    openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")
    export(taught_model_dir, tmp_path / "out", "gguf", layout="official", prove=False)
    server = llama_server.start(tmp_path / "out" / ollama.MODEL)
    client = openai.OpenAI(
        base_url=f"{server.server.listening_address}/v1", api_key="none", max_retries=0
    )

    reply = client.chat.completions.create(
        model="out",
        messages=[{"role": "user", "content": "你叫什么名字？"}],
        temperature=0,
        max_tokens=40,
    )

    assert reply.choices[0].message.content.strip() == "我是小助手。😀 鑫！"  # as it has learned
    assert reply.choices[0].finish_reason == "stop"
