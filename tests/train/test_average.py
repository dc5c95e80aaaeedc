"""What a step's loss is a mean over: its tokens, or its micro-batches, as in padded trainers."""

import json
from pathlib import Path

import pytest
import torch
from tests.padding import pad_examples

from glmtune.data.batches import BatchPlan
from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.reading import build_recipe
from glmtune.template.base import IGNORE
from glmtune.template.select import template_for
from glmtune.train.run import fine_tune

ROWS = [
    {"instruction": f"{number} 加一等于几", "input": "", "output": "等于。" * (1 + number % 5)}
    for number in range(12)
]


def gradient_norm(model: Path, rows: Path, output: Path, *overrides: str) -> float:
    """The gradient's norm in the first step of a run in which every weight is trained."""
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(rows)},
        "adapter": {"method": "full"},
        "training": {"max_steps": 1, "save_strategy": "no", "use_cpu": True},
        "lint": {"before_training": False},
        "checks": {
            "stock_reader": False,
            "stop_prompts": 0,
            "max_new_tokens": 1,
            "forgetting": None,
        },
        "output": {"dir": str(output), "report_to": "none"},
    }
    fine_tune(build_recipe(tree, overrides))
    line = json.loads((output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return float(line["grad_norm"])


@pytest.mark.parametrize("batch_size", [1, 5])  # 5: the third micro-batch has two rows
def test_a_mean_of_micro_batches_is_that_of_a_trainer_that_pads(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    template = template_for(load_tokenizer(tiny_model_dir))
    examples = list(encode_data(rows, template, EncodeOptions(max_length=100)))
    learned = [sum(label != IGNORE for label in example.labels) for example in examples]
    assert len(set(learned)) == 5  # or both means would be the same
    order = BatchPlan(range(12), rows_per_step=12, max_tokens=10**6, seed=42).step_rows(0)
    groups = [order[start : start + batch_size] for start in range(0, 12, batch_size)]
    model = load_model(tiny_model_dir, dtype=torch.float32)
    for group in groups:
        padded = pad_examples([examples[row] for row in group], pad_id=0)
        loss = model(input_ids=padded.input_ids, labels=padded.labels).loss  # a mean over tokens
        (loss / len(groups)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()

    steps = (
        f"training.per_device_train_batch_size={batch_size}",
        f"training.gradient_accumulation_steps={-(-12 // batch_size)}",
    )
    ours = gradient_norm(
        tiny_model_dir, rows, tmp_path / "mean", *steps, "training.average=micro_batches"
    )
    by_token = gradient_norm(tiny_model_dir, rows, tmp_path / "token", *steps)

    assert ours == pytest.approx(expected, rel=1e-4)
    assert abs(by_token - expected) > 0.01 * expected
