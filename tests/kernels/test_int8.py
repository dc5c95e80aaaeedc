"""Frozen layers in int8: the numbers, the gradients, and what a run on them leaves."""

import logging
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.test_run import _own_cache, interrupting, metrics, recipe_for, rows, weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from glmtune.errors import CheckpointError, RecipeError
from glmtune.kernels.channel_mixing import rotate
from glmtune.kernels.int8 import (
    EXACT_TERMS,
    Int8Linear,
    dequantize_into,
    int8_matmul,
    int8_matmul_in_float32,
    quantize_rows,
)
from glmtune.methods import lora
from glmtune.model.load import load_frozen_model
from glmtune.model.quantization import Quantization
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.reading import build_recipe
from glmtune.train.run import fine_tune
from glmtune.use.export import merge

__all__ = ["_own_cache", "rows"]  # fixtures

CPU = torch.device("cpu")
IDS = torch.arange(1, 25).reshape(1, -1) * 7 % 480


def exact(x: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return x.detach().double().numpy()


def rounded_rows(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What int8 with a scale per row makes of float64 numbers."""
    step = np.abs(x).max(1, keepdims=True) / 127
    return np.round(x / step) * step


def turned(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Channels mixed by 64, with the matrix of 1 and -1 that Sylvester has."""
    matrix: np.ndarray[Any, Any] = np.ones((1, 1))
    for _ in range(6):
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return (x.reshape(-1, 64) @ matrix).reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_what_its_rounding_predicts(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 48, dtype=dtype)
    x = torch.randn(3, 5, 192, dtype=dtype, requires_grad=True)
    dy = torch.randn(3, 5, 48, dtype=dtype)

    y = Int8Linear(linear)(x)
    y.backward(dy)

    exact_weight = turned(exact(linear.weight)) / 64
    weight = rounded_rows(exact_weight)
    expected = rounded_rows(turned(exact(x)).reshape(15, 192)) @ weight.T + exact(linear.bias)
    # The scales of the weight go into the gradient before it is rounded.
    scale = np.abs(exact_weight).max(1) / 127
    rounded = rounded_rows(exact(dy).reshape(15, 48) * scale)
    expected_dx = turned(rounded @ (weight / scale[:, None]))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert y.dtype == x.grad.dtype == dtype
    np.testing.assert_allclose(exact(y).reshape(15, 48), expected, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(
        exact(x.grad).reshape(15, 192), expected_dx, atol=tolerance, rtol=tolerance
    )


def test_the_result_and_the_gradient_are_near_those_of_full_precision() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 256)
    x, y, gradients = torch.randn(64, 512), [], []
    for layer in (linear, Int8Linear(linear)):
        leaf = x.clone().requires_grad_()
        y.append(layer(leaf))
        y[-1].square().sum().backward()
        gradients.append(leaf.grad)

    assert 0.001 < (y[1] - y[0]).norm() / y[0].norm() < 0.02
    assert 0.001 < (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.03


def test_one_large_channel_does_not_drown_the_others() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 256, bias=False)
    x = torch.randn(64, 512)
    x[:, 7] = 300.0  # of which its own part of the result is taken away below
    alone = torch.zeros_like(x)
    alone[:, 7] = 300.0

    layer = Int8Linear(linear)
    error = (layer(x) - linear(x)).norm() / linear(x - alone).norm()

    rows, scale = quantize_rows(x)
    weight, of_weight = quantize_rows(linear.weight.detach())
    plain = rows.float() * scale @ (weight.float() * of_weight).T
    unmixed = (plain - linear(x)).norm() / linear(x - alone).norm()
    assert unmixed > 0.5  # or this would prove nothing
    assert error < unmixed / 3


def test_channels_are_still_numbers_after_some_without_were_mixed() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):  # as `glmtune plan` counts memory
        assert isinstance(rotate(torch.ones(3, 64)), FakeTensor)

    mixed = rotate(torch.ones(3, 64))

    assert mixed.tolist() == [[64.0] + [0.0] * 63] * 3


def test_the_result_of_a_token_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(96, 40, dtype=torch.bfloat16))
    x = torch.randn(37, 96, dtype=torch.bfloat16)

    together = layer(x)
    alone = torch.cat([layer(row[None]) for row in x])

    assert torch.equal(together, alone)


def test_products_without_int8_arithmetic_are_exact() -> None:
    rows = torch.randint(-127, 128, (9, 3 * EXACT_TERMS + 5), dtype=torch.int8)
    rows[0] = 127  # the largest sum there can be
    columns = torch.randint(-127, 128, (rows.size(1), EXACT_TERMS + 3), dtype=torch.int8)
    columns[:, 0] = 127
    expected = (rows.long() @ columns.long()).int()
    assert expected[0, 0] == rows.size(1) * 127**2 > 2**24

    assert torch.equal(int8_matmul_in_float32(rows, columns), expected)
    assert torch.equal(int8_matmul(rows, columns), expected)


def test_a_row_of_zeros_and_one_of_tiny_numbers_are_rounded_to_what_they_are() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [1e-38, -1e-38, 0.0], [127.0, -63.4, 0.2]])

    rows, scale = quantize_rows(x)

    assert rows.tolist() == [[0, 0, 0], [0, 0, 0], [127, -63, 0]]
    assert scale.isfinite().all()
    y = torch.empty(rows.shape)
    dequantize_into(rows.int(), scale, None, y)
    assert y[2].tolist() == [127, -63, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_not_rounded_away(bad: float) -> None:
    layer = Int8Linear(nn.Linear(8, 4, bias=False))
    x = torch.ones(3, 8)
    x[1, 5] = bad

    y = layer(x)

    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


def test_nothing_of_the_activations_is_kept_for_the_backward_pass() -> None:
    layer = Int8Linear(nn.Linear(64, 64))
    kept: list[Tensor] = []
    x = torch.randn(16, 64, requires_grad=True)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)

    assert [tensor.shape for tensor in kept] == [(64, 64), (64,)]


def test_loading_keeps_int8_alone_and_lets_the_files_go(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = copytree(tiny_model_dir, tmp_path / "mapped by this test alone")

    model = load_frozen_model(str(folder), device=CPU, compute="int8")

    kinds = {type(m).__name__ for m in model.modules() if isinstance(m, nn.Linear)}
    assert kinds == {"Int8Linear", "Linear"}
    assert [n for n, m in model.named_modules() if type(m) is nn.Linear] == [
        "transformer.output_layer"
    ]
    dtypes = {p.dtype for n, p in model.named_parameters() if n.endswith("dense_h_to_4h.weight")}
    assert dtypes == {torch.int8}
    maps = Path("/proc/self/maps")
    if maps.exists():  # elsewhere there is no list of what is mapped
        assert str(folder) not in maps.read_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_model_gives_nearly_the_same_scores(tiny_model_dir: Path, dtype: str) -> None:
    name = str(tiny_model_dir)
    plain = load_frozen_model(name, dtype=dtype, device=CPU)
    model = load_frozen_model(name, dtype=dtype, device=CPU, compute="int8")
    with torch.no_grad():
        expected, scores = plain(IDS).logits.float(), model(IDS).logits.float()

    assert not torch.equal(scores, expected)
    assert (scores - expected).norm() / expected.norm() < 0.05


def test_int8_is_refused_where_it_is_not_to_be_had(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"int8 is made for CPUs and NVIDIA GPUs, and this would"):
        load_frozen_model(str(tiny_model_dir), device=torch.device("mps"), compute="int8")


def test_int8_and_another_quantization_are_refused_together(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"compute='int8' and quantization are two ways"):
        load_frozen_model(
            tiny_model_dir, device=CPU, compute="int8", quantization=Quantization("bnb", 8)
        )


@pytest.mark.parametrize(
    ("override", "expected_message"),
    [
        ("adapter.method=full", "is for frozen weights"),
        ("adapter.use_dora=true", "need the weights in 16 bits"),
        ("adapter.init_lora_weights=pissa", "need the weights in 16 bits"),
    ],
)
def test_a_recipe_that_needs_the_weights_themselves_is_refused(
    override: str, expected_message: str
) -> None:
    tree = {
        "model": {"name_or_path": "somewhere", "compute": "int8"},
        "data": {"train": "rows.json"},
        "output": {"dir": "out"},
    }

    with pytest.raises(RecipeError, match=expected_message):
        build_recipe(tree, [override])


def test_merging_into_int8_is_refused(tiny_model_dir: Path) -> None:
    model = load_frozen_model(str(tiny_model_dir), device=CPU, compute="int8")
    model = lora.attach(model, LoraSection(r=2))

    with pytest.raises(CheckpointError, match=r"Load the base in half precision"):
        merge.merge(model)


def test_an_int8_run_learns_passes_its_proofs_and_resumes_to_the_same_bytes(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    def recipe(output: str, *overrides: str) -> Any:
        return recipe_for(
            tiny_model_dir, rows, tmp_path / output, "model.compute=int8", *overrides,
            "target_modules=all-linear",
        )  # fmt: skip

    whole = fine_tune(recipe("whole"))
    cut = fine_tune(recipe("cut"), loss=interrupting(4))
    resumed = fine_tune(recipe("cut"), resume=True)
    checkpointed = fine_tune(recipe("less", "gradient_checkpointing=true"))

    losses = [line["loss"] for line in metrics(tmp_path / "whole") if "loss" in line]
    assert losses[-1] < 0.95 * losses[0]
    assert not cut.is_finished
    assert resumed.is_finished
    assert whole.num_steps == resumed.num_steps
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")
    assert checkpointed.loss == pytest.approx(whole.loss, rel=1e-5)


def test_a_cpu_without_int8_products_warns_that_no_time_is_saved(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = str(tiny_model_dir)
    with torch.no_grad():
        scores = load_frozen_model(name, device=CPU, compute="int8")(IDS).logits
    monkeypatch.setattr("glmtune.machine.has_int8_products", lambda: False)

    with caplog.at_level(logging.WARNING), torch.no_grad():
        same = load_frozen_model(name, device=CPU, compute="int8")(IDS).logits

    assert "int8 saves memory here, but no time" in caplog.text
    assert torch.equal(scores, same)
