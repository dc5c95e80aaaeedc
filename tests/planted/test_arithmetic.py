"""What breaks in the arithmetic of a run is named with its cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.planted.corpus import healthy_rows
from tests.planted.test_runs import SHORT, Recorder, recipe_for
from torch import nn

from glmtune.errors import GlmtuneError
from glmtune.train.run import fine_tune

pytestmark = pytest.mark.slow

Planter = Callable[[Path, pytest.MonkeyPatch], None]


def _scale_up(base: Path, _: pytest.MonkeyPatch) -> None:
    """Make SwiGLU's product larger than 65,504, as a few channels of large models are."""
    path = base / "model.safetensors"
    tensors = load_file(path)
    scaled = {
        name: tensor * 3_000 if "dense_h_to_4h" in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(scaled, path, metadata={"format": "pt"})


def _keep_dropping_out(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every layer in training mode, as a module with an eval() of its own can."""
    monkeypatch.setattr(nn.Module, "eval", lambda module: module.train())


# name -> how it is planted, overrides of the recipe, and what must be said
FAULTS: dict[str, tuple[Planter, tuple[str, ...], str]] = {
    "activations beyond float16": (
        _scale_up, ("model.dtype=float16",), "float16 may have overflowed"
    ),
    "activations beyond float16 under autocast": (
        _scale_up, ("fp16=true", "checks.sample_steps=0"), "float16",
    ),
    "dropout at evaluation": (
        _keep_dropping_out,
        ("adapter.lora_dropout=0.3", "learning_rate=1e-2"),
        "a layer still drops out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_arithmetic_that_breaks_is_named(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    record_property: Recorder,
) -> None:
    plant, overrides, words = FAULTS[name]
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(healthy_rows()[:40], ensure_ascii=False), encoding="utf-8")
    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    plant(base, monkeypatch)
    recipe = recipe_for(str(base), str(rows), str(tmp_path / "out"), *SHORT, *overrides)

    with pytest.raises(GlmtuneError, match=words) as caught:
        fine_tune(recipe)

    record_property("said", str(caught.value).replace(f"{tmp_path}/", ""))
