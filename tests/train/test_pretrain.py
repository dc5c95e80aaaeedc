"""Complete pre-trainings of a tiny ChatGLM: from scratch, continued, interrupted."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glmtune.data.batches import MicroBatch
from glmtune.errors import RecipeError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_model
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import PretrainRecipe
from glmtune.train import loop
from glmtune.train.pretrain import pretrain
from glmtune.train.smaller_packs import step_or_smaller
from glmtune.train.step import StepResult

CONFIG = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 2,
    "kv_channels": 16,
    "add_qkv_bias": True,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [
        f"{city}是{region}的首府，有{number}年的历史。春天来了，花儿开了，小鸟在树上唱歌。"
        for number, (city, region) in enumerate(
            [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西")] * 4
        )
    ]
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in lines),
        encoding="utf-8",
    )
    return path


def recipe_for(
    tokenizer: ChatGLMTokenizer, texts: Path, output: Path, *overrides: str, **config: Any
) -> PretrainRecipe:
    tree = {
        "model": {"name_or_path": tokenizer.name_or_path, "config": {**CONFIG, **config}},
        "data": {"train": str(texts), "max_length": 66, "eval_fraction": 0.1},
        "objective": {"token": 0.3, "sentence": 0.2, "document": 0.2, "causal": 0.3},
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 8,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 4,
            "use_cpu": True,
        },
        "checks": {"stock_reader": False},
        "output": {"dir": str(output), "report_to": "none"},
    }
    return build_recipe(tree, overrides, kind=PretrainRecipe)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_scratch_leaves_a_model_in_the_original_layout(
    tiny_tokenizer: ChatGLMTokenizer, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    overrides = ["training.max_steps=10", "checks.stock_reader=true"]
    result = pretrain(recipe_for(tiny_tokenizer, texts, output, *overrides))

    assert result.is_finished
    assert result.num_steps == 10
    names = load_file(output / "model.safetensors").keys()
    assert "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight" in names
    config = json.loads((output / "config.json").read_text())
    assert (config["num_layers"], config["padded_vocab_size"]) == (2, 512)  # 489 ids, by 64
    assert ChatGLMTokenizer.from_pretrained(output).get_vocab() == tiny_tokenizer.get_vocab()
    assert load_model(output).num_parameters() > 30_000
    report = json.loads((output / "report.json").read_text())
    assert {proof["verdict"] for proof in report["facts"]["proofs"]} == {"passed"}


@pytest.mark.parametrize("objective", ["token", "sentence", "document", "causal"])
def test_each_objective_alone_is_learned(
    objective: str, tiny_tokenizer: ChatGLMTokenizer, texts: Path, tmp_path: Path
) -> None:
    shares = dict.fromkeys(("token", "sentence", "document", "causal"), 0.0) | {objective: 1.0}
    overrides = [f"objective.{name}={share}" for name, share in shares.items()]
    output = tmp_path / "out"

    pretrain(recipe_for(tiny_tokenizer, texts, output, "training.max_steps=20", *overrides))

    losses = [line["loss"] for line in metrics(output) if "loss" in line]
    assert losses[0] == pytest.approx(math.log(512), abs=0.2)  # it begins knowing nothing
    assert sum(losses[-4:]) / 4 < losses[0] - 0.5


def test_held_out_perplexity_is_recorded_for_every_objective(
    tiny_tokenizer: ChatGLMTokenizer, texts: Path, tmp_path: Path
) -> None:
    overrides = ["objective.sentence=0", "objective.token=1", "objective.causal=3"]
    overrides += ["objective.document=0", "training.max_steps=2"]
    pretrain(recipe_for(tiny_tokenizer, texts, tmp_path / "out", *overrides))

    [line] = [line for line in metrics(tmp_path / "out") if "eval_loss" in line]
    assert {key for key in line if key.startswith("perplexity")} == {
        "perplexity_token",
        "perplexity_causal",
    }
    assert line["perplexity_causal"] == pytest.approx(math.exp(line["eval_loss_causal"]))
    expected = 0.25 * line["eval_loss_token"] + 0.75 * line["eval_loss_causal"]
    assert line["eval_loss"] == pytest.approx(expected)


def test_a_run_that_was_interrupted_ends_in_the_same_bytes(
    tiny_tokenizer: ChatGLMTokenizer,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain(recipe_for(tiny_tokenizer, texts, whole))
    steps = 0

    def interrupted(*args: Any) -> StepResult:
        nonlocal steps
        steps += 1
        if steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_or_smaller(*args)

    monkeypatch.setattr(loop, "step_or_smaller", interrupted)
    first = pretrain(recipe_for(tiny_tokenizer, texts, stopped))
    assert (first.is_finished, first.num_steps) == (False, 4)
    second = pretrain(recipe_for(tiny_tokenizer, texts, stopped), resume=True)

    assert (second.is_finished, second.num_steps) == (True, 8)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, stopped)]
    assert weights[0] == weights[1]


def test_a_run_continues_from_the_model_of_another(
    tiny_tokenizer: ChatGLMTokenizer, texts: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain(recipe_for(tiny_tokenizer, texts, first, "training.max_steps=16"))
    recipe = recipe_for(tiny_tokenizer, texts, second, f"model.name_or_path={first}")
    pretrain(recipe.model_copy(update={"model": recipe.model.model_copy(update={"config": {}})}))

    at_the_end = [line["loss"] for line in metrics(first) if "loss" in line][-4:]
    at_the_start = next(line["loss"] for line in metrics(second) if "loss" in line)
    assert at_the_start < max(at_the_end) + 0.1
    assert at_the_start < math.log(512) - 0.5


def test_a_step_is_sampled_alike_every_time_and_differs_from_the_next(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    from glmtune.objective.mixture import mixture
    from glmtune.recipe.sections import ObjectiveSection
    from glmtune.template.base import Example

    ids = tiny_tokenizer("春天来了，花儿开了。" * 5, add_special_tokens=False)["input_ids"]
    make = mixture(ObjectiveSection(token=1, document=0), tiny_tokenizer, seed=7)
    examples = [Example(ids, ids)] * 3

    def drawn(rows: list[int], step: int) -> list[int]:
        made: MicroBatch = make(examples, rows, step)
        return torch.as_tensor(made.input_ids[0]).tolist()

    assert drawn([1], 4) == drawn([1], 4)
    assert drawn([1], 4) != drawn([1], 5)
    assert drawn([0, 1], 4)[:-1] == drawn([0], 4)[:-1] + drawn([1], 4)[:-1]


@pytest.mark.parametrize(
    ("config", "expected_message"),
    [
        ({"num_layer": 2}, "num_layer, which ChatGLM's config.json does not have"),
        ({"padded_vocab_size": 64}, "padded_vocab_size is 64, and the tokenizer has 489 ids"),
        ({"rmsnorm": False}, "rmsnorm is False"),
        ({"num_layers": "two"}, "num_layers"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(
    config: dict[str, Any],
    expected_message: str,
    tiny_tokenizer: ChatGLMTokenizer,
    texts: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError, match=expected_message):
        pretrain(recipe_for(tiny_tokenizer, texts, tmp_path / "out", **config))


def test_all_weights_of_a_new_model_are_trained(
    tiny_tokenizer: ChatGLMTokenizer, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.method=full"):
        recipe_for(tiny_tokenizer, texts, tmp_path / "out", "adapter.method=lora")


def test_a_model_of_another_family_is_refused_for_blank_infilling(
    tiny_llama_dir: Path, tiny_tokenizer: ChatGLMTokenizer, texts: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(
        tiny_tokenizer, texts, tmp_path / "out", f"model.name_or_path={tiny_llama_dir}"
    )
    with pytest.raises(RecipeError, match=r"special tokens of ChatGLM.*glmtune tokenizer train"):
        pretrain(recipe)
