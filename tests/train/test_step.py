"""A step that went wrong names what made it so."""

from pathlib import Path

import pytest

from glmtune.data.batches import pack_examples
from glmtune.model.load import load_model
from glmtune.template.base import IGNORE, Example
from glmtune.train.step import first_nonfinite_module

MODULE = "transformer.encoder.layers.1.mlp.dense_h_to_4h"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_became_not_finite_is_named(tiny_model_dir: Path, value: float) -> None:
    model = load_model(tiny_model_dir)
    rows = pack_examples([Example([5, 6], [IGNORE, 6])], [0])
    assert first_nonfinite_module(model, rows).startswith("none")

    model.get_parameter(f"{MODULE}.weight").data[0, 0] = value

    assert first_nonfinite_module(model, rows) == f"{MODULE}, whose weight is not finite"
