"""Every method, on a tiny ChatGLM and a tiny Llama: it trains, saves, and comes back the same."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

import glmtune.kernels.packed_attention  # noqa: F401
from glmtune import machine
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.errors import CheckpointError, TrainingError
from glmtune.methods import lora
from glmtune.methods import method as tuning
from glmtune.methods.layers import adapted_layers
from glmtune.methods.prompt_model import PromptModel
from glmtune.model import load
from glmtune.model.load import load_model, load_tokenizer
from glmtune.model.quantization import Quantization, check_quantization, quantization_config
from glmtune.objective.next_token import next_token_loss
from glmtune.prove import liveness
from glmtune.prove.saved import check_saved, logits_of
from glmtune.recipe import methods
from glmtune.recipe.methods import AdapterSection
from glmtune.recipe.reading import build_recipe
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for
from glmtune.use.export import merge

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "target_modules": "all-linear"},
    "lora with patterns": {
        "r": 4, "target_modules": "all-linear", "rank_pattern": {"layers.1.mlp.*": 2},
        "alpha_pattern": {"layers.0.self_at.*": 64}, "bias": "lora_only",
    },
    "rslora": {"use_rslora": True, "lora_dropout": 0.1},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa by iterations": {"init_lora_weights": "pissa_niter_4", "use_rslora": True},
    "olora": {"init_lora_weights": "olora", "rank_pattern": {"layers.1.*": 2}},
    "ia3": {},
    "vera": {"r": 16, "target_modules": "all-linear"},
    "oft": {"oft_block_size": 16, "target_modules": "all-linear"},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "prompt_tuning from a text": {
        "method": "prompt_tuning", "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "请用一句话回答问题。",
    },
    "p_tuning": {"num_virtual_tokens": 5},
    "prefix_tuning": {"num_virtual_tokens": 5},
    "prefix_tuning with projection": {
        "method": "prefix_tuning", "num_virtual_tokens": 5, "prefix_projection": True,
        "encoder_hidden_size": 24,
    },
    "ptuning_v2": {"pre_seq_len": 6},
    "ptuning_v2 with projection": {
        "method": "ptuning_v2", "pre_seq_len": 6, "prefix_projection": True,
    },
    "full": {},
    "freeze": {"trainable_layers": 1},
}  # fmt: skip


def section_of(name: str, **keys: Any) -> AdapterSection:
    method = name if name in methods.METHODS else "lora"
    tree = {
        "model": {"name_or_path": "m"},
        "data": {"train": "x", "eval": "y"},
        "output": {"dir": "out"},
    }
    return build_recipe({**tree, "adapter": {"method": method, **keys}}).adapter


@pytest.fixture(params=["chatglm", "llama"])
def folder(request: pytest.FixtureRequest, tiny_model_dir: Path, tiny_llama_dir: Path) -> Path:
    return tiny_model_dir if request.param == "chatglm" else tiny_llama_dir


every_method = pytest.mark.parametrize(
    ("folder", "method"),
    [
        (family, method)
        for family in ("chatglm", "llama")
        for method in METHODS
        if family == "chatglm" or "ptuning" not in method  # which the test below refuses
    ],
    indirect=["folder"],
)


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
            liveness.check_gradients(model)
        losses.append(loss.item())
        optimizer.step()
    model.zero_grad()
    return losses


@torch.no_grad()
def scores(model: Any) -> Tensor:
    model.eval()
    return logits_of(model, probe())


@every_method
def test_a_method_trains_saves_and_comes_back_the_same(
    folder: Path, tmp_path: Path, method: str
) -> None:
    torch.manual_seed(0)
    model = tuning.attach(base(folder), section_of(method, **METHODS[method]))
    start = liveness.remember(model)
    before = scores(model)

    losses = learn(model)

    assert losses[-1] < losses[0]
    liveness.check_changed(model, start)
    after = scores(model)
    assert not torch.equal(before, after)
    template = template_for(load_tokenizer(folder))
    tuning.save(model, tmp_path / "saved", template)
    rounding = 0.01 if "init_lora_weights" in METHODS[method] else 0  # of taking weights apart
    assert check_saved(model, tmp_path / "saved", probe()) <= rounding
    assert torch.equal(scores(model), after)
    learn(model)
    assert not torch.equal(scores(model), after)
    tuning.restore(tmp_path / "saved", model)
    assert torch.equal(scores(model), after)
    if tuning.is_adapted(model):
        again = tuning.load(base(folder), tmp_path / "saved")
    else:
        again = base(tmp_path / "saved")
    torch.testing.assert_close(scores(again), after, atol=rounding, rtol=0)
    if isinstance(model, PromptModel) or "ptuning" in method:
        with pytest.raises(CheckpointError, match="which cannot be merged into weights"):
            merge.merge(again)
    elif tuning.is_adapted(model):
        torch.testing.assert_close(scores(merge.merge(again)), after, atol=0.01, rtol=1e-3)


def test_nothing_is_trained_by_none(folder: Path) -> None:
    model = tuning.attach(base(folder), section_of("none"))

    assert tuning.count_parameters(model)[0] == 0


@every_method
def test_gradient_checkpointing_leaves_every_gradient_as_it_is(folder: Path, method: str) -> None:
    torch.manual_seed(0)
    model = tuning.attach(base(folder), section_of(method, **METHODS[method]))
    learn(model, steps=1)  # or A would have no gradient
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model.train()
        next_token_loss(model, probe()).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    runs: list[nn.Module] = []
    for layer in layers:
        first = next(m for m in layer.modules() if not list(m.children()))
        first.register_forward_hook(lambda module, *_: runs.append(module))
    model.activation_checkpointing_enable({"use_reentrant": False})

    checkpointed = gradients()

    assert len(runs) >= 2 * len(layers) == 4  # each layer was computed once more
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5)


@every_method
def test_a_part_without_a_gradient_is_named(folder: Path, method: str) -> None:
    model = tuning.attach(base(folder), section_of(method, **METHODS[method]))
    model.train()
    next_token_loss(model, probe()).backward()
    liveness.check_gradients(model)
    name, tensors = list(liveness.trained_parts(model).items())[-1]
    for tensor in tensors.values():
        tensor.grad = None

    with pytest.raises(TrainingError, match=f"{name} got no gradient"):
        liveness.check_gradients(model)


@every_method
def test_a_part_that_did_not_change_is_named(folder: Path, method: str) -> None:
    model = tuning.attach(base(folder), section_of(method, **METHODS[method]))
    start = liveness.remember(model)
    name, tensors = list(liveness.trained_parts(model).items())[-1]
    first = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    learn(model)
    liveness.check_changed(model, start)
    for key, tensor in tensors.items():
        tensor.data.copy_(first[key])

    with pytest.raises(TrainingError, match=f"the update of {name} is zero"):
        liveness.check_changed(model, start)


def test_a_layer_whose_update_stays_zero_is_dead_though_weight_decay_moved_it(
    tiny_model_dir: Path,
) -> None:
    model = tuning.attach(base(tiny_model_dir), section_of("lora"))
    start = liveness.remember(model)
    learn(model)
    _, layer = next(adapted_layers(model))
    layer.lora_B["default"].weight.data.zero_()

    with pytest.raises(TrainingError, match="query_key_value is zero"):
        liveness.check_changed(model, start)


def test_with_lora_plus_b_learns_faster_than_a(tiny_model_dir: Path) -> None:
    from glmtune.recipe.sections import TrainingSection
    from glmtune.train.optimizer import make_optimizer

    model = tuning.attach(base(tiny_model_dir), section_of("lora"))
    optimizer = make_optimizer(model, TrainingSection(learning_rate=1e-4), loraplus_lr_ratio=16)

    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = [layer for _, layer in adapted_layers(model)]
    assert len(layers) == 2
    for layer in layers:
        assert rates[id(layer.lora_A["default"].weight)] == 1e-4
        assert rates[id(layer.lora_B["default"].weight)] == pytest.approx(16e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["pissa", "olora", "dora"])
def test_what_starts_from_the_weights_survives_rounding_in_half_precision(
    tiny_model_dir: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    """The base is in half precision and computed with in float32, as on an old CPU."""
    from glmtune.kernels.half_precision import widen

    half = load_model(tiny_model_dir, dtype=dtype, attn_implementation="packed")
    widen(half)
    original = {n: p.clone() for n, p in half.named_parameters()}
    model = tuning.attach(half, section_of(name, **METHODS[name]))
    learn(model)
    trained = scores(model)

    tuning.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))

    assert check_saved(model, tmp_path, probe()) == 0
    again = load_model(tiny_model_dir, dtype=dtype, attn_implementation="packed")
    widen(again)
    assert all(torch.equal(p, original[n]) for n, p in again.named_parameters())
    torch.testing.assert_close(scores(lora.load(again, tmp_path)), trained, atol=1e-4, rtol=0)


# ---- packed weights ---------------------------------------------------------------------------

PACKINGS = {
    "nf4": Quantization("bnb", 4),
    "nf4, single scales": Quantization("bnb", 4, is_double=False),
    "8 bits": Quantization("bnb", 8),
    "torchao": Quantization("torchao", 8),
}


@pytest.fixture(params=PACKINGS)
def packing(request: pytest.FixtureRequest) -> Quantization:
    quantization = PACKINGS[request.param]
    pytest.importorskip("bitsandbytes" if quantization.library == "bnb" else "torchao")
    return quantization


def packed_base(
    folder: Path, quantization: Quantization, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> Any:
    """A packed model on a CPU that computes in `dtype`, whatever this one can do."""
    monkeypatch.setattr(machine, "fast_cpu_dtypes", lambda: {torch.float32, dtype})
    return load.load_frozen_model(
        folder,
        dtype="bfloat16",
        device=torch.device("cpu"),
        attn_implementation="packed",
        quantization=quantization,
    )


@pytest.mark.parametrize("is_double", [True, False])
def test_nf4_has_the_bits_of_transformers_and_lets_the_files_go(
    folder: Path, tmp_path: Path, is_double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = copytree(folder, tmp_path / "mapped by this test alone")

    quantization = Quantization("bnb", 4, is_double)
    model = packed_base(folder, quantization, monkeypatch, torch.float32)

    maps = Path("/proc/self/maps")
    if maps.exists():  # elsewhere there is no list of what is mapped
        assert str(folder) not in maps.read_text()
    packing = quantization_config(quantization, torch.float32)
    expected = load_model(folder, dtype=torch.bfloat16, quantization=packing).state_dict()
    packed = model.state_dict()
    assert sum(tensor.dtype == torch.uint8 for tensor in packed.values()) > 0
    assert packed.keys() == expected.keys()
    for name, tensor in packed.items():
        assert torch.equal(tensor, expected[name]), name
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_evaluating_in_the_middle_leaves_the_gradients_of_a_packed_model_alone(
    folder: Path, packing: Quantization, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = packed_base(folder, packing, monkeypatch, dtype)
    torch.manual_seed(0)
    model = tuning.attach(model, section_of("qlora", target_modules="all-linear"))
    learn(model, steps=1)  # or A would have no gradient
    model.train()
    next_token_loss(model, probe()).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    scores(model)
    model.train()
    next_token_loss(model, probe()).backward()

    after = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(before) == 2 * len(list(adapted_layers(model)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_packed_model_trains_saves_and_its_adapter_merges_into_the_real_base(
    folder: Path, packing: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed_base(folder, packing, monkeypatch, torch.float32)
    exact = base(folder)
    with torch.no_grad():
        rounding = (scores(model) - scores(exact)).abs().max()
    assert rounding > 0  # it is packed, or this would prove nothing
    torch.manual_seed(0)
    model = tuning.attach(model, section_of("qlora", r=4))
    start = liveness.remember(model)

    losses = learn(model)

    assert losses[-1] < losses[0]
    liveness.check_changed(model, start)
    tuning.save(model, tmp_path, template_for(load_tokenizer(folder)))
    assert check_saved(model, tmp_path, probe()) == 0.0
    with pytest.raises(CheckpointError, match="Load the base in half precision"):
        merge.merge(model)
    tuned = lora.load(exact, tmp_path)
    expected = scores(tuned)
    torch.testing.assert_close(scores(merge.merge(tuned)), expected, atol=1e-3, rtol=1e-4)


def test_embeddings_and_the_output_layer_are_not_packed_and_not_widened(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    model = packed_base(tiny_model_dir, PACKINGS["nf4"], monkeypatch, torch.bfloat16)

    weights = {name: weight.dtype for name, weight in model.named_parameters()}
    assert weights["transformer.embedding.word_embeddings.weight"] == torch.bfloat16
    assert weights["transformer.output_layer.weight"] == torch.bfloat16
    assert weights["transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"] == torch.uint8


def test_a_library_that_is_missing_is_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'glmtune\[qlora\]'"):
        check_quantization(PACKINGS["nf4"])
