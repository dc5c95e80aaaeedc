"""All that the recipe asks for is trained, and moves as far as training moves it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.errors import TrainingError
from glmtune.methods import method
from glmtune.model.load import load_model
from glmtune.prove import liveness
from glmtune.prove.wanted import check_trained
from glmtune.recipe.methods import AdapterSection
from glmtune.recipe.reading import build_recipe

ONE_LAYER = {"target_modules": ["query_key_value"], "layers_to_transform": [0]}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "two names": {"target_modules": ["query_key_value", "dense"]},
    "all linear layers": {"target_modules": "all-linear"},
    "one layer": ONE_LAYER | {"layers_to_transform": [1]},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "bias of adapted layers": {"bias": "lora_only"},
    "beside": {"modules_to_save": ["output_layer", "input_layernorm"]},
    "ia3": {"method": "ia3"},
    "vera": {"method": "vera", "target_modules": ["query_key_value"]},
    "oft": {"method": "oft", "oft_block_size": 16, "target_modules": ["query_key_value"]},
    "p_tuning": {"method": "p_tuning"},
    "prefix_tuning": {"method": "prefix_tuning"},
    "ptuning_v2": {"method": "ptuning_v2"},
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "trainable_layers": 1, "trainable_modules": ["output_layer"]},
}


def section_of(kind: dict[str, Any]) -> AdapterSection:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "d"}, "output": {"dir": "o"}}
    return build_recipe({**tree, "adapter": kind}).adapter


def attached(folder: Path, kind: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return method.attach(load_model(folder, dtype=torch.float32), section_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_method_attaches_is_what_the_recipe_asks_for(
    tiny_model_dir: Path, kind: str
) -> None:
    model = attached(tiny_model_dir, KINDS[kind])

    check_trained(model, section_of(KINDS[kind]))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained if kind.startswith("p") else trained[-1:]:
        parameter.requires_grad_(False)
    with pytest.raises(TrainingError):
        check_trained(model, section_of(KINDS[kind]))


def test_an_adapter_of_one_layer_is_not_one_of_all(tiny_model_dir: Path) -> None:
    model = attached(tiny_model_dir, ONE_LAYER)

    with pytest.raises(TrainingError) as caught:
        check_trained(model, section_of({}))

    assert "should train transformer.encoder.layers.1.self_attention.query_key_value, but" in str(
        caught.value
    )


def test_llama_has_its_own_default_layers(tiny_llama_dir: Path) -> None:
    model = attached(tiny_llama_dir, {})
    check_trained(model, section_of({}))

    model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj").requires_grad_(False)

    with pytest.raises(TrainingError, match=r"layers\.1\.self_attn\.v_proj, but no gradient"):
        check_trained(model, section_of({}))


def test_half_precision_is_named(tiny_model_dir: Path) -> None:
    model = attached(tiny_model_dir, {"modules_to_save": ["output_layer"]})
    layer = model.get_output_embeddings()
    layer.to(torch.bfloat16)

    with pytest.raises(TrainingError, match=r"output_layer\S* is trained in half precision"):
        check_trained(model, section_of({"modules_to_save": ["output_layer"]}))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("one layer", "two names")])
def test_every_part_of_a_healthy_run_moves_far_enough(tiny_model_dir: Path, kind: str) -> None:
    for steps, warmup in ((1, 1), (20, 20)):
        model = attached(tiny_model_dir, KINDS[kind])
        start = liveness.remember(model)
        train(model, steps, learning_rate=1e-4, warmup=warmup)

        liveness.check_changed(model, start, steps, learning_rate=1e-4)


def train(
    model: Any, steps: int, learning_rate: float, warmup: int = 1, eps: float = 1e-8,
    clip: float = 1.0,
) -> None:  # fmt: skip
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0, eps=eps)
    for step in range(steps):
        ids = torch.randint(2, 480, (2, 30), generator=torch.Generator().manual_seed(step))
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (step + 1) / warmup)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "settings", [{"clip": 1e-12}, {"eps": 1e30}, {"warmup": 100_000}], ids=["clip", "eps", "warmup"]
)
@pytest.mark.parametrize("kind", ["lora", "full", "prefix_tuning"])
def test_a_run_in_which_next_to_nothing_moves_is_named(
    tiny_model_dir: Path, kind: str, settings: dict[str, Any]
) -> None:
    model = attached(tiny_model_dir, KINDS[kind])
    start = liveness.remember(model)
    train(model, 10, learning_rate=1e-4, **settings)

    with pytest.raises(TrainingError, match=r"next to nothing was learned|did not learn"):
        liveness.check_changed(model, start, 10, learning_rate=1e-4)


def test_an_update_that_is_multiplied_by_next_to_nothing_is_named(tiny_model_dir: Path) -> None:
    model = attached(tiny_model_dir, {"lora_alpha": 1e-5})
    start = liveness.remember(model)
    train(model, 10, learning_rate=1e-4)

    with pytest.raises(TrainingError, match=r"next to nothing"):
        liveness.check_changed(model, start, 10, learning_rate=1e-4)
