"""Tokens of one's own are read in one piece, trained beside a LoRA, saved, merged and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.glm_checkpoints import write_glm_checkpoint

from glmtune.conversation import Conversation, Message
from glmtune.errors import DataError, RecipeError, TrainingError
from glmtune.methods import method
from glmtune.methods.token_rows import trained_rows
from glmtune.model.load import load_model, load_tokenizer
from glmtune.prove.wanted import check_trained
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.load_model import attach, load_base
from glmtune.train.run import fine_tune
from glmtune.use.export.run import export
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session

TOKENS = ["<工单>", "<结束>"]
ROWS = [
    {"instruction": f"第 {number} 张<工单>", "input": "", "output": f"第 {number} 张<结束>好"}
    for number in range(6)
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path: Path) -> Path:
    if getattr(request, "param", "chatglm") == "chatglm":
        return tiny_model_dir
    return write_glm_checkpoint(request.param, tmp_path / "base")


def recipe_for(base: Path, folder: Path, *changes: str, tokens: list[str] = TOKENS) -> Recipe:
    rows = folder / "rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return build_recipe(
        {
            "model": {"name_or_path": str(base), "add_tokens": tokens},
            "data": {"train": str(rows), "eval": f"{rows}#2", "max_length": 200},
            "lint": {"before_training": False},
            "adapter": {"r": 2},
            "training": {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 2,
                "max_steps": 2,
                "learning_rate": 5e-3,
                "eval_strategy": "no",
                "save_strategy": "steps",
                "save_steps": 1,
                "save_total_limit": None,
                "load_best_model_at_end": False,
                "use_cpu": True,
            },
            "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 2},
            "output": {"dir": str(folder / "tuned"), "report_to": "none"},
        },
        changes,
    )


def rows_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: each for name, each in tensors.items() if "lora" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("base", ["chatglm", "glm4"], indirect=True)
def test_added_tokens_are_trained_resumed_saved_and_merged(base: Path, tmp_path: Path) -> None:
    result = fine_tune(recipe_for(base, tmp_path))
    tuned = tmp_path / "tuned"

    verdicts = {proof.name: proof.verdict for proof in result.proofs}
    assert verdicts["all that is trained has learned"] == "passed"
    assert verdicts["reloaded from disk it is the same"] == "passed"
    assert verdicts["chat asks as training did"] == "passed"
    assert "failed" not in verdicts.values()
    learned = rows_of(tuned)
    assert len(learned) == 2  # of the embedding and of the output layer
    assert {tuple(each.shape) for each in learned.values()} == {(2, 64)}
    assert {each.dtype for each in learned.values()} == {torch.float32}
    assert "| added tokens | `<工单>` `<结束>` |" in (tuned / "README.md").read_text("utf-8")

    whole = (tuned / "adapter_model.safetensors").read_bytes()
    for path in (tuned / "checkpoint-2", tuned / "adapter_config.json"):
        path.rename(tmp_path / f"away-{path.name}")
    fine_tune(recipe_for(base, tmp_path), resume=True)
    assert (tuned / "adapter_model.safetensors").read_bytes() == whole

    session = open_session(str(tuned), sampling=Sampling(max_new_tokens=2))
    assert session.reply("第 9 张<工单>").messages
    tokenizer = load_tokenizer(tuned)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    asked = Conversation((Message("user", "第 9 张<工单>"),))
    assert ids[0] in session.template.prompt_ids(asked)

    done = export(tuned, tmp_path / "merged")
    assert not [check for check in done.checks if check.verdict == "failed"]
    model: Any = load_model(tmp_path / "merged")
    for name, layer in (
        ("embed", model.get_input_embeddings()),
        ("head", model.get_output_embeddings()),
    ):
        [saved] = [each for key, each in learned.items() if _is_embedding(key) == (name == "embed")]
        torch.testing.assert_close(layer.weight[ids].float(), saved)
    assert len(load_tokenizer(tmp_path / "merged")) == len(tokenizer)


def _is_embedding(name: str) -> bool:
    return "embed" in name


@pytest.mark.parametrize("base", ["chatglm", "glm4"], indirect=True)
def test_a_row_starts_as_the_mean_of_its_pieces(base: Path, tmp_path: Path) -> None:
    recipe = recipe_for(base, tmp_path, "model.dtype=bfloat16")
    pieces = load_tokenizer(base).encode(TOKENS[0], add_special_tokens=False)

    model = attach(recipe, load_base(recipe, torch.device("cpu")))

    found = dict(trained_rows(model))
    assert len(found) == 2
    for layer in found.values():
        weight = layer.get_base_layer().weight
        [(_, rows)] = [(n, p) for n, p in layer.named_parameters() if p.requires_grad]
        assert rows.dtype == torch.float32  # the master, over a bfloat16 base
        assert rows.shape == (2, weight.shape[1])
        mean = weight[pieces].float().mean(0)
        torch.testing.assert_close(rows[0].detach(), mean, atol=1e-2, rtol=1e-2)
        assert not weight.requires_grad
    assert method.is_adapted(model)


@pytest.mark.parametrize("base", ["chatglm", "glm4"], indirect=True)
def test_rows_are_trained_where_a_cpu_computes_in_float32_with_half_precision_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmtune.machine.fast_cpu_dtypes", lambda: {torch.float32})
    recipe = recipe_for(base, tmp_path, "model.dtype=bfloat16")

    model = attach(recipe, load_base(recipe, torch.device("cpu")))

    logits = model(input_ids=torch.tensor([[100, 101, 102]])).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    for _, layer in trained_rows(model):
        assert layer.get_base_layer().weight.dtype == torch.float32
    linear = next(m for n, m in model.named_modules() if n.endswith(("q_proj", "query_key_value")))
    assert linear.weight.dtype == torch.bfloat16  # the others keep their dtype


@pytest.mark.parametrize("base", ["chatglm", "glm4"], indirect=True)
@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        (["<|user|>"], "'<.user.>' is a token of this model already"),
        ([" <x>"], "white space around it"),
        ([f"<{number}>" for number in range(80)], "and the embedding has [0-9]+ rows that no"),
    ],
)
def test_tokens_that_cannot_be_added_are_refused(
    base: Path, tokens: list[str], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_tokenizer(base, tokens)


def test_a_token_that_no_row_contains_is_refused(base: Path, tmp_path: Path) -> None:
    recipe = recipe_for(base, tmp_path, tokens=[*TOKENS, "<工卡>"])
    with pytest.raises(DataError, match=r"model\.add_tokens has <工卡>, and no row"):
        fine_tune(recipe)


def test_rows_that_are_frozen_are_found_before_training(base: Path, tmp_path: Path) -> None:
    recipe = recipe_for(base, tmp_path)
    model = attach(recipe, load_base(recipe, torch.device("cpu")))
    check_trained(model, recipe.adapter, 2)

    _, layer = next(trained_rows(model))
    layer.requires_grad_(False)
    with pytest.raises(
        TrainingError, match=r"rows of model\.add_tokens should be trained in the emb"
    ):
        check_trained(model, recipe.adapter, 2)
