"""A step that went wrong names what made it so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glmtune.data.batches import pack_examples
from glmtune.errors import TrainingError
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.model.load import load_model
from glmtune.recipe.reading import load_recipe
from glmtune.template.base import IGNORE, Example
from glmtune.train import step
from glmtune.train.run import fine_tune
from glmtune.train.step import first_nonfinite_module

MODULE = "transformer.encoder.layers.1.mlp.dense_h_to_4h"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_became_not_finite_is_named(tiny_model_dir: Path, value: float) -> None:
    model = load_model(tiny_model_dir)
    rows = pack_examples([Example([5, 6], [IGNORE, 6])], [0])
    assert first_nonfinite_module(model, rows).startswith("none")

    model.get_parameter(f"{MODULE}.weight").data[0, 0] = value

    assert first_nonfinite_module(model, rows) == f"{MODULE}, whose weight is not finite"


CHANGES = ("training.max_steps=2", "training.save_strategy=no", "data.max_length=40")


def test_reading_all_losses_of_a_step_at_once_changes_nothing(
    recipe: Path,
    measured: Callable[[Path], list[dict[str, float]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("at once", "late"):
        monkeypatch.setattr(step, "waits_at_once", lambda device, name=name: name == "at once")
        fine_tune(load_recipe(recipe, [*CHANGES, f"output.dir={tmp_path / name}"]))

    late, at_once = tmp_path / "late", tmp_path / "at once"
    assert measured(late) == measured(at_once)
    weights = "adapter_model.safetensors"
    assert (late / weights).read_bytes() == (at_once / weights).read_bytes()


def test_a_loss_that_is_read_late_is_explained_as_one_that_is_read_at_once(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, allows_cudnn, messages = 0, [], []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        allows_cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
        calls += torch.is_grad_enabled()
        return cross_entropy_sum(logits, targets) * (float("inf") if calls == 2 else 1.0)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    for at_once in (True, False):
        calls = 0
        monkeypatch.setattr(step, "waits_at_once", lambda device, is_it=at_once: is_it)
        with pytest.raises(TrainingError, match=r"step 1: the loss is inf.*rows\.json:") as caught:
            fine_tune(load_recipe(recipe, [*CHANGES, "output.overwrite=true"]), loss=loss)
        messages.append(str(caught.value))

    assert messages[0] == messages[1]
    assert calls > 2  # the other micro-batches of the step came after it
    assert not any(allows_cudnn)
    assert torch.backends.cuda.cudnn_sdp_enabled() is before
