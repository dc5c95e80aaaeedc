"""Full and freeze tuning: which weights of the model are trained."""

from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import RecipeError
from glmtune.methods import method
from glmtune.model.load import load_model
from glmtune.prove import liveness
from glmtune.recipe.methods import FreezeSection


def test_the_last_layers_or_named_modules_are_trained(tiny_model_dir: Path) -> None:
    model = method.attach(
        load_model(tiny_model_dir),
        FreezeSection(trainable_layers=1, trainable_modules=("layers.0.mlp",)),
    )

    parts = {name.rpartition(".")[0] for name in liveness.trained_parts(model)}
    first, last = (f"transformer.encoder.layers.{i}" for i in (0, 1))
    assert parts == {
        f"{first}.mlp.dense_h_to_4h", f"{first}.mlp.dense_4h_to_h",
        f"{last}.mlp.dense_h_to_4h", f"{last}.mlp.dense_4h_to_h",
        f"{last}.self_attention.query_key_value", f"{last}.self_attention.dense",
        f"{last}.input_layernorm", f"{last}.post_attention_layernorm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"trainable_layers": 3}, "trainable_layers is 3, but this model has 2 layers"),
        ({"trainable_modules": ["q_proj"]}, r"names q_proj, which .* dense_4h_to_h"),
    ],
)
def test_weights_that_the_model_lacks_are_refused(
    tiny_model_dir: Path, keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        method.attach(load_model(tiny_model_dir), FreezeSection(**keys))
