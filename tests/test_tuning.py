"""Every method, on a tiny ChatGLM and a tiny Llama: it trains, saves, and comes back the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import glmtune.attention  # noqa: F401
from glmtune import adapter, alive, tuning
from glmtune.adapter import logits
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.errors import RecipeError, TrainingError
from glmtune.load import load_model, load_tokenizer
from glmtune.loss import next_token_loss
from glmtune.recipe import AdapterSection, build_recipe
from glmtune.template import IGNORE, Example, template_for

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "target_modules": "all-linear"},
    "full": {},
    "freeze": {"trainable_layers": 1},
}


def section_of(method: str, **keys: Any) -> AdapterSection:
    tree = {
        "model": {"name_or_path": "m"},
        "data": {"train": "x", "eval": "y"},
        "output": {"dir": "out"},
    }
    return build_recipe({**tree, "adapter": {"method": method, **keys}}).adapter


@pytest.fixture(params=["chatglm", "llama"])
def folder(request: pytest.FixtureRequest, tiny_model_dir: Path, tiny_llama_dir: Path) -> Path:
    return tiny_model_dir if request.param == "chatglm" else tiny_llama_dir


def base(folder: Path) -> Any:
    return load_model(folder, dtype=torch.float32, attn_implementation="packed")


def probe(seed: int = 1) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for length in (12, 7):
        ids = torch.randint(3, 400, (length,), generator=generator).tolist()
        examples.append(Example(ids, [IGNORE] * 4 + ids[4:]))
    return pack_examples(examples, range(2))


def learn(model: Any, steps: int = 3) -> list[float]:
    """Take a few plain steps, and give the loss before each."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2, weight_decay=0)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = next_token_loss(model, probe())
        loss.backward()
        if step == 0:
            alive.check_gradients(model)
        losses.append(loss.item())
        optimizer.step()
    return losses


@torch.no_grad()
def scores(model: Any) -> Tensor:
    model.eval()
    return logits(model, probe())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_saves_and_comes_back_the_same(
    folder: Path, tmp_path: Path, method: str
) -> None:
    torch.manual_seed(0)
    model = tuning.attach(base(folder), section_of(method, **METHODS[method]))
    start = alive.remember(model)
    before = scores(model)

    losses = learn(model)

    assert losses[-1] < losses[0]
    alive.check_changed(model, start)
    after = scores(model)
    assert not torch.equal(before, after)
    template = template_for(load_tokenizer(folder))
    tuning.save(model, tmp_path / "saved", template)
    assert tuning.check_saved(model, tmp_path / "saved", probe()) == 0.0
    learn(model)
    assert not torch.equal(scores(model), after)
    tuning.restore(tmp_path / "saved", model)
    assert torch.equal(scores(model), after)
    if tuning.is_adapted(model):
        again = adapter.load(base(folder), tmp_path / "saved")
    else:
        again = base(tmp_path / "saved")
    assert torch.equal(scores(again), after)


def test_nothing_is_trained_by_none(folder: Path) -> None:
    model = tuning.attach(base(folder), section_of("none"))

    assert tuning.count_parameters(model)[0] == 0


def test_the_last_layers_or_named_modules_are_trained(tiny_model_dir: Path) -> None:
    model = tuning.attach(
        base(tiny_model_dir),
        section_of("freeze", trainable_layers=1, trainable_modules=["layers.0.mlp"]),
    )

    parts = {name.rpartition(".")[0] for name in alive.trained_parts(model)}
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
        tuning.attach(base(tiny_model_dir), section_of("freeze", **keys))


@pytest.mark.parametrize("method", METHODS)
def test_a_part_without_a_gradient_is_named(folder: Path, method: str) -> None:
    model = tuning.attach(base(folder), section_of(method, **METHODS[method]))
    model.train()
    next_token_loss(model, probe()).backward()
    alive.check_gradients(model)
    name, tensors = list(alive.trained_parts(model).items())[-1]
    for tensor in tensors.values():
        tensor.grad = None

    with pytest.raises(TrainingError, match=f"{name} got no gradient"):
        alive.check_gradients(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_part_that_did_not_change_is_named(folder: Path, method: str) -> None:
    model = tuning.attach(base(folder), section_of(method, **METHODS[method]))
    start = alive.remember(model)
    name, tensors = list(alive.trained_parts(model).items())[-1]
    first = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    learn(model)
    alive.check_changed(model, start)
    for key, tensor in tensors.items():
        tensor.data.copy_(first[key])

    with pytest.raises(TrainingError, match=f"the update of {name} is zero"):
        alive.check_changed(model, start)


def test_a_layer_whose_update_stays_zero_is_dead_though_weight_decay_moved_it(
    tiny_model_dir: Path,
) -> None:
    model = tuning.attach(base(tiny_model_dir), section_of("lora"))
    start = alive.remember(model)
    learn(model)
    _, layer = next(adapter.adapted_layers(model))
    layer.lora_B["default"].weight.data.zero_()

    with pytest.raises(TrainingError, match="query_key_value is zero"):
        alive.check_changed(model, start)


def test_a_saved_model_that_differs_in_one_number_is_caught(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = tuning.attach(base(tiny_model_dir), section_of("full"))
    tuning.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.encoder.final_layernorm.weight"][0] += 0.5
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(TrainingError, match="gives other logits"):
        tuning.check_saved(model, tmp_path, probe())
