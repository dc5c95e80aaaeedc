"""The examples under TRL's own trainers, on our model at tiny size."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from glmtune.use.open import open_session

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "disable_tqdm": True,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of TRL about itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _needs_trl() -> None:
    pytest.importorskip("trl", reason="runs an example under TRL: pip install trl")


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


def changed(folder: str, name: str) -> bool:
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    return all(tensor.any() for key, tensor in tensors.items() if name in key)


def test_answers_are_sampled_and_rewarded(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n} 加一", "answer": str(n + 1)} for n in range(8)]
    example = runpy.run_path(str(EXAMPLES / "grpo.py"))

    folder = example["main"](
        str(tiny_model_dir), write(tmp_path / "rows.json", rows), str(tmp_path / "out"),
        **SMALL, num_generations=4, max_completion_length=8,
    )  # fmt: skip

    assert changed(folder, "lora_B")  # answers differ in length, so in reward
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model_dir)
    open_session(str(tiny_model_dir), folder)  # as `glmtune chat` does, which the example advises


def test_a_reward_model_scores_the_better_answer_higher(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"问题{n}", "chosen": "好。", "rejected": "坏。"} for n in range(8)]
    example = runpy.run_path(str(EXAMPLES / "reward_model.py"))

    folder = example["main"](
        str(tiny_model_dir), write(tmp_path / "rows.json", rows), str(tmp_path / "out"), **SMALL
    )

    assert changed(folder, "lora_B")
    assert changed(folder, "classifier_head")
