"""`glmtune info` of an adapter folder: its norms, whatever its dtype, and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glmtune.inspect.adapter import describe_adapter, is_adapter

LAYER = "transformer.encoder.layers.0.self_attention.query_key_value"


def write_adapter(folder: Path, dtype: torch.dtype) -> Path:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query_key_value"]}
    config["base_model_name_or_path"] = "base"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        f"base_model.model.{LAYER}.lora_A.weight": torch.ones(2, 8, dtype=dtype),
        f"base_model.model.{LAYER}.lora_B.weight": torch.full((8, 2), 0.5, dtype=dtype),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_norm_of_an_update_is_the_same_in_every_dtype(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    facts = describe_adapter(write_adapter(tmp_path, dtype))

    assert facts.norms == {LAYER: 2.0}
    assert facts.dtypes == (str(dtype).removeprefix("torch."),)
    assert (facts.num_tensors, facts.numel, facts.dead) == (2, 32, ())
    assert (facts.base, facts.r, facts.target_modules) == ("base", 2, ("query_key_value",))


def test_an_adapter_in_the_old_format_is_described_the_same(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    new = write_adapter(tmp_path / "new", torch.float32)
    old = write_adapter(tmp_path / "old", torch.float32)
    torch.save(load_file(old / "adapter_model.safetensors"), old / "adapter_model.bin")
    (old / "adapter_model.safetensors").unlink()

    [as_new, as_old] = [describe_adapter(folder) for folder in (new, old)]

    assert as_old.norms == as_new.norms
    assert (as_old.num_tensors, as_old.numel, as_old.dtypes) == (2, 32, ("float32",))
    assert as_old.file_bytes == (old / "adapter_model.bin").stat().st_size


def test_a_layer_that_is_zero_or_not_finite_is_dead(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, torch.float32)
    zero, infinite = torch.zeros(8, 2), torch.full((8, 2), torch.inf)
    save_file({"a.lora_B.weight": zero, "b.lora_B.weight": infinite},
              folder / "adapter_model.safetensors")  # fmt: skip

    assert describe_adapter(folder).dead == ("a", "b")


def test_an_adapter_is_described_without_torch(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, torch.float32)
    code = (
        "import sys; from pathlib import Path\n"
        "from glmtune.inspect.adapter import describe_adapter, is_adapter\n"
        "assert is_adapter(Path(sys.argv[1]))\n"
        "assert describe_adapter(Path(sys.argv[1])).norms\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_a_model_is_no_adapter(tiny_model_dir: Path) -> None:
    assert not is_adapter(tiny_model_dir)
