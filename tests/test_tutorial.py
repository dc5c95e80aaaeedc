"""The well-known tutorial's own script, on our classes."""

import json
import runpy
from pathlib import Path

from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[1] / "examples" / "tutorial.py"


def test_the_tutorial_trains_with_the_stock_trainer_and_then_chats(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": f"第{n}个问题", "input": "", "output": f"答案{n}"} for n in range(40)]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    tutorial = runpy.run_path(str(SCRIPT))
    response = tutorial["main"](str(tiny_model_dir), str(data), str(tmp_path / "out"), max_steps=1)

    assert isinstance(response, str | dict)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == ["query_key_value"]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
