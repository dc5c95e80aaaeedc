"""An export is written, opened again by another way, compared, and only then gets its name."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.use.export.odd_model import MakeAdapter, MakeModel, logits_of, name_base

from glmtune.conversation import Conversation, Message
from glmtune.errors import CheckpointError, OutputError, RecipeError
from glmtune.methods import lora
from glmtune.model.load import load_model
from glmtune.use.export import formats
from glmtune.use.export.chatglm import write_chatglm
from glmtune.use.export.folder import ProofError
from glmtune.use.export.job import Job
from glmtune.use.export.proofs import GREEDY, LOGITS, PROMPTS, ROUNDING
from glmtune.use.export.run import export
from glmtune.use.export.update import Survival
from glmtune.use.open import open_session

Usage = namedtuple("Usage", "total used free")


def verdicts(checks: Any) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "export.json").read_text("utf-8"))
    return report


def test_a_merged_folder_answers_as_the_adapter_on_its_base_and_says_so(
    odd_model_dir: Path, odd_adapter_dir: Path, tmp_path: Path
) -> None:
    result = export(odd_adapter_dir, tmp_path / "merged", max_shard_size="200KB")

    found = verdicts(result.checks)
    assert (found[PROMPTS], found[LOGITS], found[GREEDY]) == ("passed", "passed", "passed")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 2
    report = report_of(tmp_path / "merged")
    assert (report["status"], report["format"]) == ("complete", "chatglm")
    assert report["update"]["survives"] > 0.999
    assert str(odd_model_dir.parent) not in json.dumps(report), "a path of this machine"
    expected = logits_of(lora.load(load_model(odd_model_dir), odd_adapter_dir))
    again = logits_of(load_model(tmp_path / "merged"))
    assert (again - expected).abs().max() < 1e-5 * expected.abs().max()
    question = Conversation((Message("user", "你好"),))
    merged, tuned = open_session(str(tmp_path / "merged")), open_session(str(odd_adapter_dir))
    assert merged.template.prompt_ids(question) == tuned.template.prompt_ids(question)


def test_glm_is_opened_by_transformers_in_a_process_without_glmtune(
    odd_adapter_dir: Path, tmp_path: Path
) -> None:
    result = export(odd_adapter_dir, tmp_path / "glm", "glm")

    found = verdicts(result.checks)
    assert (found[LOGITS], found[GREEDY]) == ("passed", "passed")
    assert "pipeline('text-generation'" in result.start


def test_an_adapter_stays_one_and_is_opened_by_peft_over_the_same_base(
    odd_adapter_dir: Path, tmp_path: Path
) -> None:
    result = export(odd_adapter_dir, tmp_path / "lora", "lora-glm")

    found = verdicts(result.checks)
    assert (found[LOGITS], found[GREEDY]) == ("passed", "passed")
    assert [path.name for path in tmp_path.iterdir()] == ["lora"], "the base for the proof is gone"


def test_a_result_that_lost_the_adapter_is_an_error_and_not_presented_as_good(
    odd_adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_adapter(job: Job, folder: Path) -> Survival:
        write_chatglm(Job(job.base, job.base_name, None, job.template), folder)
        return Survival(torch.float32)

    broken = replace(formats.FORMATS["chatglm"], write=lose_the_adapter)
    monkeypatch.setitem(formats.FORMATS, "chatglm", broken)

    with pytest.raises(ProofError, match=rf"{LOGITS}.*out\.failed"):
        export(odd_adapter_dir, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]
    assert report_of(tmp_path / "out.failed")["status"] == "failed"


def test_one_wrong_tensor_is_caught(
    odd_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap_two_rows(job: Job, folder: Path) -> Survival | None:
        survival = write_chatglm(job, folder)
        tensors = load_file(folder / "model.safetensors")
        name = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
        tensors[name][[0, 1]] = tensors[name][[1, 0]]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return survival

    broken = replace(formats.FORMATS["chatglm"], write=swap_two_rows)
    monkeypatch.setitem(formats.FORMATS, "chatglm", broken)

    with pytest.raises(ProofError, match=LOGITS):
        export(odd_model_dir, tmp_path / "out")


def test_an_update_below_the_last_bit_is_lost_loudly(
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = make_model(torch.bfloat16)
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_alpha=4)
    adapter = make_adapter(base, config, 1e-3)
    caplog.set_level("INFO", logger="glmtune")

    with pytest.raises(ProofError, match=rf"{ROUNDING}.*--dtype float32"):
        export(adapter, tmp_path / "lossy")
    assert "survives in bfloat16" in caplog.text
    assert "--dtype float32" in caplog.text

    kept = export(adapter, tmp_path / "exact", dtype="float32")
    assert verdicts(kept.checks)[LOGITS] == "passed"
    assert load_model(tmp_path / "exact").dtype == torch.float32


def test_config_keeps_the_names_the_code_and_the_hub_name_of_the_base(
    odd_model_dir: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(odd_model_dir, base)
    config = json.loads((base / "config.json").read_text("utf-8"))
    config |= {
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "_name_or_path": "THUDM/chatglm3-6b",
        "torch_dtype": config.pop("dtype"),
        "of_an_old_tool": 7,
    }
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    (base / "modeling_chatglm.py").write_text("raise SystemExit('never run')\n", "utf-8")
    (base / "notes.py").write_text("", "utf-8")

    export(base, tmp_path / "out", dtype="float16", prove=False)

    written = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert written == config | {"torch_dtype": "float16"}
    assert (tmp_path / "out" / "modeling_chatglm.py").is_file()
    assert not (tmp_path / "out" / "notes.py").exists()
    assert report_of(tmp_path / "out")["proofs"] == []


def test_the_base_is_the_one_that_the_adapter_names_or_the_one_given(
    odd_model_dir: Path, odd_adapter_dir: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(odd_adapter_dir, adapter)
    name_base(adapter, "/gone/away/model")

    with pytest.raises(CheckpointError, match=r"/gone/away/model.*Name it: --base MODEL"):
        export(adapter, tmp_path / "out")
    export(adapter, tmp_path / "out", base=str(odd_model_dir), prove=False)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_base_of_another_tokenizer_is_refused(odd_adapter_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another model.*--base MODEL"):
        export(odd_adapter_dir, tmp_path / "out", base="nano")


def test_an_adapter_made_elsewhere_has_the_layout_that_is_given(
    odd_adapter_dir: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(odd_adapter_dir, foreign)
    (foreign / "glmtune.json").unlink()

    export(foreign, tmp_path / "unknown", prove=False)
    export(foreign, tmp_path / "tutorial", layout="tutorial", prove=False)

    assert not (tmp_path / "unknown" / "glmtune.json").exists()
    card = json.loads((tmp_path / "tutorial" / "glmtune.json").read_text("utf-8"))
    assert card["template"]["layout"] == "tutorial"
    with pytest.raises(CheckpointError, match=r"layout official.*Leave out --layout"):
        export(odd_adapter_dir, tmp_path / "other", layout="tutorial", prove=False)


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    odd_model_dir: Path, odd_adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="expected one of chatglm"):
        export(odd_model_dir, tmp_path / "out", "onnx")
    with pytest.raises(RecipeError, match=r"--to lora-glm keeps the adapter.*Leave --dtype out"):
        export(odd_adapter_dir, tmp_path / "out", "lora-glm", dtype="float16")
    with pytest.raises(CheckpointError, match="has no base"):
        export(odd_model_dir, tmp_path / "out", base="nano")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 1000))
    with pytest.raises(OutputError, match="would be written, and the disk has"):
        export(odd_model_dir, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_family_is_merged_in_its_own_layout(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(load_model(tiny_llama_dir), config)
    tuned.save_pretrained(str(adapter))

    result = export(adapter, tmp_path / "out")

    assert verdicts(result.checks)[LOGITS] == "passed"
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "out/model.safetensors")
