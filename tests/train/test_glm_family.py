"""GLM-4 and later are trained, chatted with, merged and proven as ChatGLM3 is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.glm_checkpoints import KINDS, STOPS, write_glm_checkpoint

from glmtune.errors import CheckpointError
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.reading import build_recipe
from glmtune.template.select import template_for
from glmtune.train.run import Result, fine_tune
from glmtune.use.export.run import export
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session

WEATHER = {
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}],
    "messages": [
        {"role": "user", "content": "北京天气怎么样？"},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "北京"}}}],
        },
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "北京现在 3 度。"},
    ],
}
NAME = {
    "messages": [
        {"role": "user", "content": "你叫什么名字？"},
        {"role": "assistant", "content": "我是小助手。"},
        {"role": "user", "content": "再说一次"},
        {"role": "assistant", "content": "小助手。"},
    ]
}
PROVEN = {
    "training scores a row as answering does",
    "all that is trained has learned",
    "reloaded from disk it is the same",
    "streamed from disk it answers the same",
    "merged into the base it answers the same",
    "chat asks as training did",
}


def tune(model: Path, output: Path, *changes: str) -> Result:
    rows = output.parent / "rows.json"
    rows.write_text(json.dumps([WEATHER, NAME] * 2, ensure_ascii=False), encoding="utf-8")
    recipe = build_recipe(
        {
            "model": {"name_or_path": str(model)},
            "data": {"train": str(rows), "eval": f"{rows}#2", "max_length": 400},
            "lint": {"before_training": False},
            "adapter": {"r": 4},
            "training": {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "max_steps": 2,
                "learning_rate": 5e-3,
                "eval_strategy": "no",
                "save_strategy": "no",
                "use_cpu": True,
            },
            "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 4},
            "output": {"dir": str(output), "report_to": "none"},
        },
        changes,
    )
    return fine_tune(recipe)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_glm_is_tuned_proven_asked_and_merged(kind: str, tmp_path: Path) -> None:
    base = write_glm_checkpoint(kind, tmp_path / "base")
    checkpointed = "training.gradient_checkpointing=true"

    result = tune(base, tmp_path / "tuned", *([checkpointed] if kind != "glm" else []))

    verdicts = {proof.name: proof.verdict for proof in result.proofs}
    assert {name for name, verdict in verdicts.items() if verdict == "passed"} >= PROVEN
    config = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["k_proj", "q_proj", "v_proj"]

    session = open_session(str(tmp_path / "tuned"), sampling=Sampling(max_new_tokens=8))
    assert session.reply("你好").messages

    done = export(tmp_path / "tuned", tmp_path / "merged")
    assert not [check for check in done.checks if check.verdict == "failed"]
    kept = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    tokenizer = load_tokenizer(tmp_path / "merged")
    assert kept["eos_token_id"] == tokenizer.convert_tokens_to_ids(list(STOPS))
    assert set(kept["eos_token_id"]) == set(template_for(tokenizer).stop_ids)


def test_an_export_to_another_layout_says_what_to_use(tmp_path: Path) -> None:
    base = write_glm_checkpoint("glm4", tmp_path / "base")
    for to, advice in (("glm", "glmtune merge"), ("vllm", "vLLM reads this model as it is")):
        with pytest.raises(CheckpointError, match=advice):
            export(base, tmp_path / "out", to=to, prove=False)
    for to in ("gguf", "ollama"):
        with pytest.raises(CheckpointError, match=r"convert_hf_to_gguf\.py"):
            export(base, tmp_path / "out", to=to, prove=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_gives_the_scores_of_its_examples_alone(kind: str, tmp_path: Path) -> None:
    import glmtune.kernels.packed_attention  # noqa: F401  # registers it

    base = write_glm_checkpoint(kind, tmp_path)
    model: Any = load_model(base, attn_implementation="packed")
    ids = torch.randint(10, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    starts = torch.tensor([0, 5, 12], dtype=torch.int32)

    with torch.no_grad():
        packed = model(
            input_ids=ids,
            position_ids=positions,
            cu_seq_lens_q=starts,
            cu_seq_lens_k=starts,
            max_length_q=7,
            max_length_k=7,
            use_cache=False,
        ).logits
        alone = [model(input_ids=part, use_cache=False).logits for part in (ids[:, :5], ids[:, 5:])]

    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)


def test_the_layer_that_predicts_two_tokens_is_left_out(tmp_path: Path) -> None:
    """GLM-4.5-Air is published with one layer for multi-token prediction, which is not trained."""
    from safetensors.torch import load_file, save_file

    base = write_glm_checkpoint("glm4_moe", tmp_path, num_nextn_predict_layers=1)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    model: Any = load_model(base)

    assert len(model.model.layers) == 2
    assert not [name for name, _ in model.named_parameters() if "layers.2" in name]
