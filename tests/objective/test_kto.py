"""Labeled rows: the loss is that of the paper for each answer alone, and a run learns by labels."""

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objective.test_preference import SIDES, logp_alone, tuned

from glmtune.data.batches import MicroBatch, idle_micro_batch, micro_batch_of
from glmtune.data.formats import convert_labeled, detect
from glmtune.data.packing import pack
from glmtune.data.rows import Row, RowError
from glmtune.errors import DataError, RecipeError
from glmtune.methods.layers import adapted_layers
from glmtune.objective.kto import Kto, kto_losses
from glmtune.prove.metrics import read_metrics
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.sections import PreferenceSection
from glmtune.template.base import IGNORE, Example
from glmtune.train.run import fine_tune

CPU = torch.device("cpu")
GOOD = [True, False, True, False]  # of SIDES
# Each prompt with the answer of the row two further on.
MISMATCHED = [
    Example([3, 4, 5, 20, 21, 2], [IGNORE] * 3 + [20, 21, 2]),
    Example([3, 4, 5, 2], [IGNORE] * 3 + [2]),
    Example([11, 12, 9, 2], [IGNORE] * 2 + [9, 2]),
    Example([11, 12, 8, 7, 6, 2], [IGNORE] * 2 + [8, 7, 6, 2]),
]


def labeled(rows: tuple[int, ...]) -> MicroBatch:
    """Some rows of SIDES as a pack; their numbers are those in the file."""
    part = micro_batch_of(pack([SIDES[row] for row in rows]), rows)
    is_good = torch.tensor([GOOD[row] for row in rows])
    return replace(part, is_good=is_good)


def test_the_loss_of_a_row_is_that_of_the_paper() -> None:
    rewards, is_good = torch.tensor([1.0, 1.0, -2.0]), torch.tensor([True, False, False])
    section = PreferenceSection(
        stage="kto", beta=0.5, desirable_weight=1.5, undesirable_weight=0.25
    )

    losses = kto_losses(rewards, is_good, 0.4, section)

    # 1 - sigmoid(0.5 (1 - 0.4)) = 1 / (1 + e^0.3), and so on.
    expected = [
        1.5 / (1 + math.exp(0.3)),
        0.25 / (1 + math.exp(-0.3)),
        0.25 / (1 + math.exp(1.2)),
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_step_has_the_loss_and_the_gradient_of_its_rows_alone(tiny_model_dir: Path) -> None:
    section = PreferenceSection(stage="kto", beta=0.3, undesirable_weight=2.0)
    model = tuned(tiny_model_dir).eval()
    trained = [p for p in model.parameters() if p.requires_grad]

    def rewards_of(sides: list[Example]) -> torch.Tensor:
        policy = torch.stack([logp_alone(model, side) for side in sides])
        with model.disable_adapter(), torch.no_grad():
            reference = torch.stack([logp_alone(model, side) for side in sides])
        return policy - reference

    kl = -1.0
    for factor in (0.1, -1):  # a small change makes the mismatched answers more or less likely
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.data *= factor
        if (kl := float(rewards_of(MISMATCHED).detach().mean())) > 0:
            break
    assert kl > 0.01  # or it would be clamped to 0, and nothing seen of it
    expected = kto_losses(rewards_of(SIDES), torch.tensor(GOOD), kl, section).sum()
    wanted = torch.autograd.grad(expected, trained)

    model.base_model.model.set_attn_implementation("packed")
    objective = Kto(section, max_length=16)
    for parts in ([(0, 1, 2, 3)], [(3, 1, 0), (2,)]):
        step = [labeled(rows) for rows in parts]
        objective.begin(model, step, CPU)
        loss = torch.stack([objective.loss(model, part) for part in step]).sum()
        found = torch.autograd.grad(loss, trained)

        torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
        assert objective.measured(is_training=False)["kl"][0] == pytest.approx(kl, abs=1e-4)


def test_the_divergence_is_estimated_from_answers_to_other_prompts(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tuned(tiny_model_dir).eval()
    seen: list[list[int]] = []
    original = type(model).forward

    def note(self: Any, *args: Any, **given: Any) -> Any:
        seen.append(given["input_ids"][0].tolist())
        return original(self, *args, **given)

    monkeypatch.setattr(type(model), "forward", note)
    model.base_model.model.set_attn_implementation("packed")
    Kto(PreferenceSection(stage="kto"), max_length=5).begin(
        model, [labeled((3, 1)), labeled((0, 2))], CPU
    )

    cut = [example.input_ids[:5] for example in MISMATCHED]  # at max_length
    assert sorted(i for ids in seen for i in ids) == sorted(2 * [i for ids in cut for i in ids])


def test_a_new_adapter_is_its_base_and_a_single_row_has_no_estimate(tiny_model_dir: Path) -> None:
    model = tuned(tiny_model_dir).train()
    model.base_model.model.set_attn_implementation("packed")
    objective = Kto(PreferenceSection(stage="kto"), max_length=16)

    objective.begin(model, [labeled((0,)), idle_micro_batch(labeled((1,)))], CPU)
    loss = objective.loss(model, idle_micro_batch(labeled((1,))))

    assert model.training
    assert objective.count(labeled((0, 1, 2))) == 3
    assert (objective.count(idle_micro_batch(labeled((1,)))), loss.item()) == (0, 0)
    measured = objective.measured(is_training=True)
    assert measured["kl"] == (0.0, 1.0)
    assert measured["reward_chosen"] == measured["reward_rejected"] == (0.0, 0.0)


# ---- rows -----------------------------------------------------------------------------------

ASKED = {"role": "user", "content": "q"}
ANSWERED = {"role": "assistant", "content": "a"}
LAYOUTS: list[dict[str, Any]] = [
    {"instruction": "q", "output": "a", "kto_tag": False},  # LLaMA-Factory
    {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "kto_tag": False,
    },
    {"messages": [ASKED, ANSWERED], "label": False},  # ms-swift
    {"query": "q", "response": "a", "label": False},
    {"prompt": "q", "completion": "a", "label": False},  # TRL
    {"prompt": [ASKED], "completion": [ANSWERED], "label": False},
    {"prompt": "q", "completion": "a", "label": 0},
    {"prompt": "q", "response": "a", "label": "False"},  # CSV
    {"prompt": "q", "response": "a", "kto_tag": "0.0"},
    {"conversation": [{"human": "q", "assistant": "a"}], "label": False},
    {"data": ["q", "a"], "label": False},
]


@pytest.mark.parametrize("fields", LAYOUTS)
def test_every_layout_of_a_label_is_read(fields: dict[str, Any]) -> None:
    key = "label" if "label" in fields else "kto_tag"
    flipped = {"False": "True", "0.0": "1.0", "0": 1}.get(str(fields[key]), True)
    for value, is_good in ((fields[key], False), (flipped, True)):
        row = Row({**fields, key: value}, "rows.jsonl", 1)
        read = convert_labeled(row, detect([row]))
        assert read.is_good is is_good
        assert [(m.role, m.content, m.is_learned) for m in read] == [
            ("user", "q", None),
            ("assistant", "a", None),  # a bad answer is learned too: to be avoided
        ]


def test_the_label_is_about_the_last_answer_and_may_have_another_name() -> None:
    turns = [ASKED, ANSWERED, ASKED, {"role": "assistant", "content": "b"}]
    row = Row({"messages": turns, "thumbs_up": True}, "rows.jsonl", 1)
    columns = {"kto_tag": "thumbs_up"}

    read = convert_labeled(row, detect([row], columns=columns), columns)

    assert [m.is_learned for m in read] == [False, False, False, None]
    assert read.is_good is True


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"rows.jsonl:7: .*label.*missing or null.*data.columns: \{kto_tag: their_column\}"),
        ({"label": None}, "missing or null"),
        ({"label": "maybe"}, "got the text 'maybe', expected true or false"),
        ({"label": 2}, "got the number 2"),
        ({"label": True, "kto_tag": 0}, "contradict each other"),
    ],
)
def test_a_row_without_a_verdict_is_refused(fields: dict[str, Any], message: str) -> None:
    row = Row({"prompt": "q", "response": "a", **fields}, "rows.jsonl", 7)
    with pytest.raises(RowError, match=message):
        convert_labeled(row, detect([row]))


def test_pairs_are_sent_to_their_own_stage_and_labels_to_theirs() -> None:
    row = Row({"prompt": "q", "chosen": "a", "rejected": "b"}, "rows.jsonl", 1)
    with pytest.raises(DataError, match=r"Use preference\.stage=dpo"):
        convert_labeled(row, detect([row]))


# ---- runs -----------------------------------------------------------------------------------


@pytest.fixture
def tree(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = [
        {"prompt": f"{city}在哪里", "completion": answer, "label": label}
        for city, place in [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西")]
        for answer, label in ((f"在{place}。", True), ("不知道。", False))
    ]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return {
        "stage": "kto",
        "model": {"name_or_path": str(tiny_model_dir), "dtype": "float32"},
        "data": {"train": str(path), "eval": f"{path}#4", "max_length": 64},
        "lint": {"errors": "report"},  # the held-out rows are learned too
        "adapter": {"r": 4, "lora_dropout": 0.1},
        "training": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_total_limit": None,
            "load_best_model_at_end": False,
            "use_cpu": True,
        },
        "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 2},
        "output": {"dir": str(tmp_path / "run"), "report_to": "none"},
    }


def test_a_run_learns_by_labels_and_resumes_to_the_same_bytes(
    tree: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="glmtune")
    fine_tune(build_recipe(tree))
    run, name = tmp_path / "run", "adapter_model.safetensors"
    lines = read_metrics(run / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line]
    assert losses[0] == pytest.approx(0.5, abs=1e-6)  # a new adapter is its base
    assert losses[-1] < losses[0] - 0.01
    assert held_out[-1]["eval_reward_margin"] > 0.05
    last = held_out[-1]
    assert last["eval_reward_margin"] == pytest.approx(
        last["eval_reward_chosen"] - last["eval_reward_rejected"]
    )
    assert last["eval_kl"] >= 0
    assert "proof: reloaded from disk it is the same: passed" in caplog.text
    assert "proof: chat asks as training did: passed" in caplog.text
    assert "不知道" not in "".join(  # a bad answer is not what is expected
        line for line in (run / "report.html").read_text(encoding="utf-8").splitlines()
        if "expected" in line
    )  # fmt: skip
    assert "per row" in (run / "README.md").read_text(encoding="utf-8")

    whole = (run / name).read_bytes()
    shutil.rmtree(run / "checkpoint-6")
    fine_tune(build_recipe(tree), resume=True)
    assert (run / name).read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["adapter.method=full"], "is for an adapter over its base, and adapter.method=full"),
        (["adapter.bias=all"], "compares with the base"),
        (["adapter.name_or_path=earlier"], "merge an earlier adapter first"),
        (["training.label_smoothing_factor=0.1"], "has another loss"),
        (["training.sharding=fsdp2"], "cannot be used with preference.stage=kto"),
        (["preference.loss=ipo"], "is a loss of preference.stage=dpo"),
        (["per_device_train_batch_size=1", "gradient_accumulation_steps=1"], "a step has one"),
        (["stage=sft", "preference.undesirable_weight=2"], "use preference.stage=kto"),
    ],
)
def test_what_has_no_verdict_to_learn_from_is_refused(
    tree: dict[str, Any], changes: list[str], message: str
) -> None:
    del tree["adapter"]
    with pytest.raises(RecipeError, match=message):
        build_recipe(tree, changes)
