"""Keys of a section reach peft; names that fit nothing in the model are refused."""

from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import RecipeError
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model
from glmtune.prove import liveness
from glmtune.recipe.methods import LoraSection


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (
            {"rank_pattern": {"mlp.*": 2}},
            r"rank_pattern has 'mlp\.\*', which fits no adapted layer",
        ),
        ({"modules_to_save": ["lm_hed"]}, "modules_to_save names lm_hed"),
        (
            {"target_modules": ["query_key_value"], "layers_to_transform": [2]},
            "names layer 2, but this model has the layers 0 to 1",
        ),
    ],
)
def test_what_peft_would_pass_over_is_refused(
    tiny_model_dir: Path, keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        lora.attach(load_model(tiny_model_dir), LoraSection(**keys))


def test_patterns_layers_and_modules_reach_peft(tiny_model_dir: Path) -> None:
    model = lora.attach(
        load_model(tiny_model_dir),
        LoraSection(
            target_modules=["query_key_value", "dense"], layers_to_transform=1, r=4,
            rank_pattern={"self_attention.dense": 2}, alpha_pattern={"self_attention.dense": 6},
            modules_to_save="output_layer",
        ),
    )  # fmt: skip

    layer = "transformer.encoder.layers.1.self_attention"
    adapted = dict(adapted_layers(model))
    assert set(adapted) == {f"{layer}.query_key_value", f"{layer}.dense"}
    assert adapted[f"{layer}.dense"].r["default"] == 2
    assert adapted[f"{layer}.dense"].scaling["default"] == 6 / 2
    assert "transformer.output_layer.modules_to_save.default.weight" in liveness.trained_parts(
        model
    )
