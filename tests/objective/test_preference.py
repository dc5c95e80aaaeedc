"""Pairs: the loss is what it is for each answer alone, and a run learns to prefer."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune import machine
from glmtune.data.batches import MicroBatch, idle_micro_batch, micro_batch_of
from glmtune.data.encode import EncodeOptions
from glmtune.data.formats import convert_pair, detect
from glmtune.data.packing import pack
from glmtune.data.pairs import encode_pairs
from glmtune.data.rows import Row, RowError
from glmtune.errors import DataError, RecipeError
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model import load, quantization
from glmtune.model.load import load_model, load_tokenizer
from glmtune.objective.preference import Preference, pair_losses, sequence_logps
from glmtune.prove.metrics import read_metrics
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.sections import PreferenceSection
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for
from glmtune.train.run import fine_tune

LOSSES = ("sigmoid", "hinge", "ipo", "simpo", "orpo")


def example(ids: list[int], prompt: int) -> Example:
    return Example(ids, [IGNORE] * prompt + ids[prompt:])


# Two pairs whose answers have 2, 4, 3 and 1 tokens.
SIDES = [
    example([3, 4, 5, 9, 2], 3),
    example([3, 4, 5, 8, 7, 6, 2], 3),
    example([11, 12, 20, 21, 2], 2),
    example([11, 12, 2], 2),
]


def pairs_of(sides: list[Example]) -> MicroBatch:
    return micro_batch_of(pack(sides), rows=(0, 1))


def tuned(tiny_model_dir: Path) -> Any:
    """A tiny model with an adapter that does something."""
    torch.manual_seed(0)
    model = lora.attach(load_model(tiny_model_dir), LoraSection(r=2))
    for _, layer in adapted_layers(model):
        layer.lora_B["default"].weight.data.normal_(0, 0.1)
    return model


def logp_alone(model: Any, side: Example) -> Tensor:
    """The log-probability of an answer, from the logits of its row alone."""
    logits = model(torch.tensor([side.input_ids])).logits[0].float()
    logps = F.log_softmax(logits, dim=-1)
    learned = [i for i, label in enumerate(side.labels) if label != IGNORE]
    total: Tensor = sum(logps[i - 1, side.input_ids[i]] for i in learned)  # type: ignore[assignment]
    return total


def test_positions_made_on_the_host_as_for_a_gpu_give_the_same(tiny_model_dir: Path) -> None:
    model, part = tuned(tiny_model_dir).eval(), pairs_of(SIDES)

    found = sequence_logps(model, replace(part, **part._of_the_host()))

    torch.testing.assert_close(found, sequence_logps(model, part))


def test_each_answer_of_a_pack_has_its_own_probability(tiny_model_dir: Path) -> None:
    model = tuned(tiny_model_dir).eval()
    model.base_model.model.set_attn_implementation("packed")

    found = sequence_logps(model, pairs_of(SIDES))

    alone = torch.stack([logp_alone(model, side) for side in SIDES])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_of_a_pack_are_those_of_its_answers_alone(
    tiny_model_dir: Path, name: Any
) -> None:
    section = PreferenceSection(loss=name, beta=0.3)
    model = tuned(tiny_model_dir).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    policy = torch.stack([logp_alone(model, side) for side in SIDES])
    with model.disable_adapter(), torch.no_grad():
        reference = torch.stack([logp_alone(model, side) for side in SIDES])
    if section.has_reference:
        assert (policy - reference).abs().min() > 0.05
        policy = policy - reference
    if name in ("ipo", "simpo", "orpo"):
        policy = policy / torch.tensor([2, 4, 3, 1])
    expected = pair_losses(policy[::2], policy[1::2], section).sum()
    expected_gradients = torch.autograd.grad(expected, trained)

    model.base_model.model.set_attn_implementation("packed")
    loss = Preference(section).loss(model, pairs_of(SIDES))
    gradients = torch.autograd.grad(loss, trained)

    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_an_untrained_adapter_prefers_nothing(tiny_model_dir: Path) -> None:
    model = lora.attach(load_model(tiny_model_dir, attn_implementation="packed"), LoraSection())
    objective = Preference(PreferenceSection())

    loss = objective.loss(model.train(), pairs_of(SIDES))

    assert loss.item() == pytest.approx(2 * 0.6931472, abs=1e-5)  # log 2 for each of two pairs
    assert objective.count(pairs_of(SIDES)) == 2
    assert objective.measured(is_training=True)["reward_accuracy"] == (0.0, 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("model", ["tiny_model_dir", "tiny_llama_dir"])
def test_the_reference_multiplies_as_what_is_trained_does(
    model: str,
    bits: Literal[4, 8] | None,
    dtype: torch.dtype,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if bits is not None:
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(machine, "fast_cpu_dtypes", lambda: {torch.float32, dtype})
    base = load.load_frozen_model(
        request.getfixturevalue(model),
        dtype="bfloat16",
        device=torch.device("cpu"),
        attn_implementation="packed",
        quantization=None if bits is None else quantization.Quantization("bnb", bits),
    )
    tuned = lora.attach(base, LoraSection(r=2, lora_dropout=0.5)).train()

    for sides in (SIDES, SIDES[:2], SIDES[2:]):  # 10, 6 and 4 learned tokens
        loss = Preference(PreferenceSection()).loss(tuned, pairs_of(sides))
        assert loss.item() == pytest.approx(len(sides) / 2 * 0.6931472, abs=1e-6)

    loss.backward()
    assert all(module.training for module in tuned.modules())
    assert any(p.grad is not None and p.grad.any() for p in tuned.parameters())


def test_a_process_without_pairs_adds_nothing(tiny_model_dir: Path) -> None:
    model = tuned(tiny_model_dir)
    model.base_model.model.set_attn_implementation("packed")
    objective, idle = Preference(PreferenceSection(loss="orpo")), idle_micro_batch(pairs_of(SIDES))

    loss = objective.loss(model, idle)
    loss.backward()

    assert objective.count(idle) == 0
    assert loss.item() == 0
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


# ---- rows -----------------------------------------------------------------------------------

USER = {"role": "user", "content": "q"}
LAYOUTS: list[dict[str, Any]] = [
    {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},  # LLaMA-Factory
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    {"prompt": "q", "chosen": "good", "rejected": "bad"},  # TRL
    {
        "prompt": [USER],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    },
    {
        "prompt": "q",
        "chosen": [USER, {"role": "assistant", "content": "good"}],
        "rejected": [USER, {"role": "assistant", "content": "bad"}],
        "score_chosen": 8.0,
    },
    {
        "messages": [USER, {"role": "assistant", "content": "good"}],  # ms-swift
        "rejected_response": "bad",
    },
    {"query": "q", "response": "good", "rejected_response": "bad"},
]


@pytest.mark.parametrize("fields", LAYOUTS)
def test_every_layout_of_a_preference_is_read(fields: dict[str, Any]) -> None:
    row = Row(fields, "rows.jsonl", 1)

    better, worse = convert_pair(row, detect([row]))

    assert [(m.role, m.content) for m in better] == [("user", "q"), ("assistant", "good")]
    assert [(m.role, m.content) for m in worse] == [("user", "q"), ("assistant", "bad")]


def test_only_the_answers_that_differ_are_learned() -> None:
    history = [USER, {"role": "assistant", "content": "a"}, USER]
    row = Row(
        {
            "chosen": [*history, {"role": "assistant", "content": "good"}],
            "rejected": [*history, {"role": "assistant", "content": "bad"}],
        },
        "rows.jsonl",
        1,
    )

    better, _ = convert_pair(row, detect([row]))

    assert [m.is_learned for m in better] == [False, False, False, None]


def test_pairs_that_teach_nothing_are_refused() -> None:
    def pair(**fields: Any) -> None:
        row = Row(fields, "rows.jsonl", 7)
        convert_pair(row, detect([row]))

    with pytest.raises(RowError, match=r"rows.jsonl:7.*it is the chosen answer again"):
        pair(prompt="q", chosen="same", rejected="same")
    with pytest.raises(RowError, match="its question is not that of the chosen answer"):
        pair(
            chosen=[USER, {"role": "assistant", "content": "a"}],
            rejected=[{"role": "user", "content": "other"}, {"role": "assistant", "content": "b"}],
        )
    with pytest.raises(RowError, match="the answer is empty"):
        pair(prompt="q", chosen="a", rejected="")
    with pytest.raises(RowError, match="the row has no question for it"):
        pair(chosen="a", rejected="b")
    with pytest.raises(RowError, match="got the number 3"):
        pair(prompt="q", chosen=3, rejected="b")
    with pytest.raises(DataError, match="format alpaca has one answer"):
        pair(instruction="q", output="a")


def test_a_pair_is_left_out_as_a_whole(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = template_for(load_tokenizer(tiny_model_dir))
    rows = [
        {"prompt": "一", "chosen": "二", "rejected": "三" * 200},
        {"prompt": "四", "chosen": "五", "rejected": "六六"},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    options = EncodeOptions(max_length=40)
    for _ in range(2):  # encoded, and found encoded
        pairs = encode_pairs(path, template, options, cache_dir=tmp_path / "cache")

    assert len(pairs) == 1
    assert (pairs.report.num_rows, pairs.report.num_overlong) == (2, 1)
    _, worse = convert_pair(Row(rows[1], "", 1), detect([Row(rows[1], "", 1)]))
    assert pairs.worse(0) == template.encode(worse)
    assert pairs[0].input_ids != pairs.worse(0).input_ids
    assert pairs.lengths.tolist() == [len(pairs[0].input_ids) + len(pairs.worse(0).input_ids)]
    assert pairs.learned_lengths.sum() == pairs.report.num_learned_tokens


# ---- runs -----------------------------------------------------------------------------------


@pytest.fixture
def tree(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = [
        {"prompt": f"{city}在哪里", "chosen": f"在{place}。" * (1 + n % 3), "rejected": "不知道。"}
        for n, (city, place) in enumerate(
            [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西")] * 2
        )
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return {
        "stage": "dpo",
        "model": {"name_or_path": str(tiny_model_dir), "dtype": "float32"},
        "data": {"train": str(path), "eval": f"{path}#3", "max_length": 64},
        "lint": {"errors": "report"},  # the held-out rows are learned too
        "adapter": {"r": 4, "lora_dropout": 0.1},
        "training": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 4,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": None,
            "load_best_model_at_end": False,
            "use_cpu": True,
        },
        "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 2},
        "output": {"dir": str(tmp_path / "run"), "report_to": "none"},
    }


@pytest.mark.parametrize("name", ["sigmoid", pytest.param("simpo", marks=pytest.mark.slow)])
def test_a_run_learns_to_prefer(
    tree: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO, logger="glmtune")
    tree["preference"] = {"loss": name}
    result = fine_tune(build_recipe(tree))

    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line]
    assert result.num_steps == 8
    if name == "sigmoid":
        assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0] - 0.05
    assert held_out[-1]["eval_reward_accuracy"] == 1.0
    assert held_out[-1]["eval_reward_margin"] > held_out[0]["eval_reward_margin"]
    assert "proof: reloaded from disk it is the same: passed" in caplog.text
    assert "proof: chat asks as training did: passed" in caplog.text
    assert "per pair" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_a_run_of_pairs_resumes_to_the_same_bytes(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["training"]["max_steps"] = 4
    fine_tune(build_recipe(tree, [f"output.dir={tmp_path / 'whole'}"]))
    fine_tune(build_recipe(tree))
    for step in (3, 4):
        for file in (tmp_path / "run" / f"checkpoint-{step}").iterdir():
            file.unlink()
        (tmp_path / "run" / f"checkpoint-{step}").rmdir()

    fine_tune(build_recipe(tree), resume=True)

    name = "adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["adapter.method=full"], "is for an adapter over its base, and adapter.method=full"),
        (["adapter.method=prompt_tuning"], "adapter.method=prompt_tuning is not of that kind"),
        (["adapter.bias=all"], "compares with the base, which"),
        (["adapter.name_or_path=earlier"], "Merge that one first"),
        (["data.overlong=truncate_prompt"], "different prompts"),
        (["training.label_smoothing_factor=0.1"], "preference.stage=dpo has another"),
        (["training.sharding=fsdp2"], "cannot be used with preference.stage=dpo"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tree: dict[str, Any], changes: list[str], message: str
) -> None:
    del tree["adapter"]
    with pytest.raises(RecipeError, match=message):
        build_recipe(tree, changes)


@pytest.mark.slow
def test_losses_without_a_reference_train_every_weight(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["adapter"] = {"method": "full"}
    recipe = build_recipe(tree, ["preference.loss=orpo", "learning_rate=1e-3", "max_steps=6"])

    fine_tune(recipe)

    losses = [line.get("loss") for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    measured = [loss for loss in losses if loss is not None]
    assert measured[-1] < measured[0]


@pytest.mark.parametrize(
    "section",
    [
        {"method": "ia3"},
        {"method": "vera", "r": 16},
        {"method": "oft", "oft_block_size": 16},
        {"use_dora": True, "r": 4},
        {"init_lora_weights": "pissa", "r": 4},
        {"method": "qlora", "r": 4},
        {"method": "qlora", "r": 4, "quantization_bit": 8},
    ],
    ids=lambda section: "-".join(str(value) for value in section.values()),
)
@pytest.mark.slow
def test_other_methods_learn_to_prefer_and_come_back_the_same(
    tree: dict[str, Any], caplog: pytest.LogCaptureFixture, section: dict[str, Any]
) -> None:
    if section.get("method") == "qlora":
        pytest.importorskip("bitsandbytes")
    caplog.set_level(logging.INFO, logger="glmtune")
    tree["adapter"] = section

    fine_tune(build_recipe(tree, ["learning_rate=2e-2", "max_steps=4", "save_strategy=no"]))

    losses = [
        line["loss"]
        for line in read_metrics(Path(tree["output"]["dir"]) / "metrics.jsonl")
        if "loss" in line
    ]
    assert losses[0] == pytest.approx(0.69315, abs=1e-4)  # a new adapter is its base
    assert losses[-1] < losses[0]
    assert "proof: reloaded from disk it is the same: passed" in caplog.text
