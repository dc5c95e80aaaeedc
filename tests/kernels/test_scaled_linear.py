"""Frozen layers of 8 bits on a GPU: the torch expressions here, the kernels where there is one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kernels.test_int8 import exact, rounded_rows, turned
from tests.train.test_run import _own_cache, interrupting, metrics, recipe_for, rows, weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glmtune.errors import CheckpointError, RecipeError
from glmtune.kernels import fp8, scaled_linear
from glmtune.kernels.fp8 import Fp8Linear
from glmtune.kernels.int8 import Int8Linear
from glmtune.kernels.scaled_linear import FP8, dequantize
from glmtune.methods import lora
from glmtune.model.load import check_compute, load_frozen_model
from glmtune.model.quantization import Quantization
from glmtune.recipe.methods import LoraSection
from glmtune.train.prepare import prepare_run
from glmtune.train.run import fine_tune
from glmtune.use.export import merge

__all__ = ["_own_cache", "rows"]  # fixtures

CPU, GPU = torch.device("cpu"), torch.device("cuda")
INT8 = torch.int8
IDS = torch.arange(1, 25).reshape(1, -1) * 7 % 480
HIDDEN, FUSED, FFN = 4096, 4608, 13696  # of ChatGLM3-6B
SHAPES = ((HIDDEN, FUSED), (HIDDEN, HIDDEN), (HIDDEN, 2 * FFN), (FFN, HIDDEN))  # in, out

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="there is no CUDA GPU with fp8 here",
)


def as_fp8(x: Tensor) -> Tensor:
    """What fp8 with a scale per row makes of numbers."""
    step = x.double().abs().amax(1, keepdim=True) / 448
    return (x.double() / step).to(FP8).double() * step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_fp8_layer_computes_what_its_rounding_predicts(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 48, dtype=dtype)
    x = torch.randn(3, 5, 192, dtype=dtype, requires_grad=True)
    dy = torch.randn(3, 5, 48, dtype=dtype)

    y = Fp8Linear(linear)(x)
    y.backward(dy)

    weight, bias = as_fp8(linear.weight.detach()), linear.bias.detach().double()
    expected = as_fp8(x.detach().view(15, 192)) @ weight.T + bias
    # The scales of the weight go into the gradient before it is rounded.
    scale = linear.weight.detach().double().abs().amax(1) / 448
    expected_dx = as_fp8(dy.view(15, 48).double() * scale) @ (weight / scale[:, None])
    close = {
        torch.float32: {"atol": 1e-4, "rtol": 1e-4},
        torch.bfloat16: {"atol": 0.02, "rtol": 0.02},
    }
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.detach().double().view(15, 48), expected, **close[dtype])
    torch.testing.assert_close(x.grad.double().view(15, 192), expected_dx, **close[dtype])


def test_the_result_and_the_gradient_of_fp8_are_near_those_of_full_precision() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 256)
    x, y, gradients = torch.randn(64, 512), [], []
    x[:, 7] = 30.0  # a large channel, which costs the others little
    for layer in (linear, Fp8Linear(linear)):
        leaf = x.clone().requires_grad_()
        y.append(layer(leaf))
        y[-1].square().sum().backward()
        gradients.append(leaf.grad)

    assert 0.01 < (y[1] - y[0]).norm() / y[0].norm() < 0.05
    assert 0.01 < (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.06


def test_the_gradient_in_e4m3_is_twice_as_exact_as_in_e5m2() -> None:
    torch.manual_seed(0)
    dy = torch.randn(64, 256) * torch.exp(2 * torch.randn(64, 256))  # most of a row is small

    error = as_fp8(dy) - dy
    largest = dy.abs().amax(1, keepdim=True)
    e5m2 = (dy * (57344 / largest)).to(torch.float8_e5m2).double() * (largest / 57344)

    assert error.norm() < 0.6 * (e5m2 - dy).norm()


def test_int8_on_a_gpu_rounds_as_on_a_cpu() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 48)
    layer = Int8Linear(linear)
    x = torch.randn(3, 5, 192, requires_grad=True)
    dy = torch.randn(3, 5, 48)

    y = scaled_linear._ScaledLinear.apply(x, layer.weight, layer.scale, layer.bias, INT8)
    y.backward(dy)

    weight = turned(exact(linear.weight)) / 64
    scale = abs(weight).max(1) / 127
    weight = rounded_rows(weight)
    expected = rounded_rows(turned(exact(x)).reshape(15, 192)) @ weight.T + exact(linear.bias)
    expected_dx = turned(
        rounded_rows(exact(dy).reshape(15, 48) * scale) @ (weight / scale[:, None])
    )
    assert x.grad is not None
    torch.testing.assert_close(exact(y).reshape(15, 48), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exact(x.grad).reshape(15, 192), expected_dx, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("out", [48, 2 * scaled_linear.PART + 16])
def test_without_kernels_the_weight_is_converted_and_nothing_else_is_rounded(out: int) -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(96, out))
    x = torch.randn(2, 3, 96, requires_grad=True)
    dy = torch.randn(2, 3, out)

    y = scaled_linear.scaled_linear(x, layer.weight, layer.scale, layer.bias, INT8)
    (dx,) = torch.autograd.grad(y, x, dy)

    weight = dequantize(layer.weight, layer.scale, torch.float32)
    torch.testing.assert_close(y, x @ weight.T + layer.bias)
    torch.testing.assert_close(dx, dy @ weight, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_not_rounded_away(bad: float) -> None:
    layer = Fp8Linear(nn.Linear(32, 16, bias=False))
    x = torch.ones(3, 32)
    x[1, 5] = bad

    y = layer(x)

    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


def test_nothing_of_the_activations_is_kept_for_the_backward_pass() -> None:
    layer = Fp8Linear(nn.Linear(64, 32))
    kept: list[Tensor] = []
    x = torch.randn(16, 64, requires_grad=True)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)

    assert [(tensor.shape, tensor.dtype) for tensor in kept] == [
        ((32, 64), INT8),
        ((32,), torch.float32),
    ]


@pytest.mark.parametrize("dtype", [INT8, FP8])
def test_the_operators_say_truly_what_they_give(dtype: torch.dtype) -> None:
    # The check of what an operator changes adds numbers up, which torch cannot for float8.
    tests = ("test_faketensor", *(("test_schema",) if dtype == INT8 else ()))
    x, scale = torch.randn(3, 64), torch.rand(64)
    rows, row_scale = scaled_linear.quantize(x, None, False, dtype)
    weight = rows[:2]
    for operator, given in (
        (scaled_linear.quantize_op, (x, scale, False, dtype)),
        (scaled_linear.quantize_op, (x, None, True, dtype)),
        (scaled_linear.multiply_op, (rows, row_scale, weight, scale[:2], scale[:2], torch.float16)),
        (scaled_linear.transpose_op, (weight,)),
    ):
        torch.library.opcheck(operator, given, test_utils=tests)


def test_a_plan_counts_the_memory_of_a_gpu_without_one() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer = Fp8Linear(nn.Linear(64, 32, device="meta", dtype=torch.bfloat16))
        x = torch.empty(5, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
        y = layer(x)
        (dx,) = torch.autograd.grad(y, x, torch.empty_like(y))

    assert (y.shape, y.dtype, dx.shape) == ((5, 32), torch.bfloat16, (5, 64))


# ---- models --------------------------------------------------------------------------------------


def test_a_model_in_fp8_keeps_its_head_learns_and_cannot_be_merged(tiny_model_dir: Path) -> None:
    name = str(tiny_model_dir)
    plain = load_frozen_model(name, dtype="float32", device=CPU)
    model = load_frozen_model(name, dtype="float32", device=CPU)

    fp8.quantize(model, torch.float32)

    kinds = {n: type(m) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert kinds.pop("transformer.output_layer") is nn.Linear
    assert Fp8Linear in set(kinds.values()) <= {Fp8Linear, nn.Linear}
    assert all(
        m.in_features % 16 or m.out_features % 16
        for n, m in model.named_modules()
        if n in kinds and type(m) is nn.Linear
    )
    with torch.no_grad():
        expected, scores = plain(IDS).logits, model(IDS).logits
    assert not torch.equal(scores, expected)
    assert (scores - expected).norm() / expected.norm() < 0.25
    tuned: Any = lora.attach(model, LoraSection(r=2, target_modules="all-linear"))
    optimizer = torch.optim.Adam((p for p in tuned.parameters() if p.requires_grad), lr=0.01)
    losses = []
    for _ in range(4):
        loss = tuned(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    with pytest.raises(CheckpointError, match=r"Load the base in half precision"):
        merge.merge(tuned)


def test_fp8_is_refused_before_anything_is_read_where_no_product_has_it() -> None:
    with pytest.raises(
        RecipeError,
        match=r"compute=fp8 needs a GPU of compute capability 8.9 or later \(RTX 40 and 50, L4, "
        r"H100 and later\), and this would run on cpu. Use model.compute=int8, or leave it out",
    ):
        load_frozen_model("there is no such model", device=CPU, compute="fp8")


def test_a_run_in_fp8_is_refused_on_a_cpu_before_a_row_is_read(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(
        tiny_model_dir, tmp_path / "no rows.json", tmp_path / "out", "model.compute=fp8"
    )

    with pytest.raises(RecipeError, match="and this would run on cpu"):
        prepare_run(recipe, resume=False)
    with pytest.raises(RecipeError, match=r"and this would run on mps\. Leave it out\."):
        check_compute("fp8", torch.device("mps"))
    assert not (tmp_path / "out").exists()


def test_fp8_and_another_quantization_are_refused_together(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"compute='fp8' and quantization are two ways"):
        load_frozen_model(
            tiny_model_dir,
            device=GPU,
            device_map="meta",
            compute="fp8",
            quantization=Quantization("bnb", 8),
        )


@pytest.mark.slow
def test_a_run_in_fp8_passes_its_proofs_and_resumes_to_the_same_bytes(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaled_linear, "why_no_fp8", lambda device: None)  # torch's expressions

    def recipe(output: str) -> Any:
        return recipe_for(
            tiny_model_dir, rows, tmp_path / output, "model.compute=fp8",
            "target_modules=all-linear",
        )  # fmt: skip

    whole = fine_tune(recipe("whole"))
    cut = fine_tune(recipe("cut"), loss=interrupting(4))
    resumed = fine_tune(recipe("cut"), resume=True)

    losses = [line["loss"] for line in metrics(tmp_path / "whole") if "loss" in line]
    assert losses[-1] < 0.95 * losses[0]
    assert (cut.is_finished, resumed.is_finished) == (False, True)
    assert whole.num_steps == resumed.num_steps
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")


def test_a_plan_for_a_gpu_that_is_not_here_loads_the_shapes_of_fp8(tiny_model_dir: Path) -> None:
    model = load_frozen_model(str(tiny_model_dir), device=GPU, device_map="meta", compute="fp8")

    weights = {p.dtype for p in model.parameters() if p.dim() == 2}
    assert INT8 in weights
    assert {p.device.type for p in model.parameters()} == {"meta"}


# ---- on a GPU, at the sizes of ChatGLM3-6B -------------------------------------------------------


def layer_on_gpu(
    kind: type[Int8Linear | Fp8Linear], shape: tuple[int, int], bias: bool = True
) -> Any:
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=bias, device="cuda", dtype=torch.bfloat16)
    return linear, kind(linear)


def check_products(
    kind: type[Int8Linear | Fp8Linear], shape: tuple[int, int], rows: int, mean: float
) -> None:
    """Compare both directions with float64 on the same rounded numbers, and with the true layer."""
    linear, layer = layer_on_gpu(kind, shape)
    x = torch.randn(rows, shape[0], device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16)

    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy)

    some = torch.arange(0, rows, max(rows // 64, 1), device="cuda")  # float64 is slow
    weight = linear.weight.detach().double()
    wanted = x[some].detach().double() @ weight.T + linear.bias.detach().double()
    wanted_dx = dy[some].double() @ weight
    for found, expected in ((y[some], wanted), (dx[some], wanted_dx)):
        error = (found.detach().double() - expected).norm() / expected.norm()
        assert mean / 4 < error < mean, f"{kind.__name__} {shape} {rows}: {error:.4f}"
    dtype = INT8 if kind is Int8Linear else FP8
    of_x, x_scale = scaled_linear.quantize_by_torch(x[some].detach(), None, dtype == INT8, dtype)
    rounded = of_x.double() * x_scale @ (layer.weight.view(dtype).double() * layer.scale[:, None]).T
    rounded += linear.bias.detach().double()
    error = (y[some].detach().double() - rounded).norm() / rounded.norm()
    assert error < 0.006, f"{kind.__name__} {shape} {rows}: {error:.4f} beside its own rounding"


@needs_gpu
@pytest.mark.parametrize("rows", [1, 77, 2048, 8191])
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_cuda_products_are_those_of_float64(shape: tuple[int, int], rows: int) -> None:
    assert scaled_linear.why_no_kernels(torch.device("cuda", 0), INT8) is None
    check_products(Int8Linear, shape, rows, 0.02)


@needs_fp8
@pytest.mark.parametrize("rows", [1, 77, 2048, 8191])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_cuda_products_are_those_of_float64(shape: tuple[int, int], rows: int) -> None:
    assert scaled_linear.why_no_fp8(torch.device("cuda", 0)) is None
    assert scaled_linear.why_no_kernels(torch.device("cuda", 0), FP8) is None
    check_products(Fp8Linear, shape, rows, 0.05)


@needs_gpu
def test_int8_cuda_rows_do_not_depend_on_their_neighbours() -> None:
    _, layer = layer_on_gpu(Int8Linear, (HIDDEN, FUSED))
    x = torch.randn(300, HIDDEN, device="cuda", dtype=torch.bfloat16)

    with torch.no_grad():
        together, alone = layer(x), torch.cat([layer(part) for part in x.split([1, 16, 83, 200])])

    assert torch.equal(together, alone)


@needs_gpu
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_int8_cuda_numbers_that_are_not_finite_are_not_rounded_away(bad: float) -> None:
    _, layer = layer_on_gpu(Int8Linear, (HIDDEN, 64))
    x = torch.ones(3, HIDDEN, device="cuda", dtype=torch.bfloat16)
    x[1, 5] = bad

    y = layer(x)

    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


@needs_gpu
def test_int8_cuda_without_kernels_gives_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, layer = layer_on_gpu(Int8Linear, (FFN, HIDDEN))
    x = torch.randn(64, FFN, device="cuda", dtype=torch.bfloat16)
    monkeypatch.setattr(scaled_linear, "has_kernels", lambda device, dtype: False)

    error = (layer(x) - linear(x)).norm() / linear(x).norm()

    assert error < 0.015


@needs_gpu
@pytest.mark.parametrize("compute", ["int8", pytest.param("fp8", marks=needs_fp8)])
def test_cuda_models_are_quantized_layer_by_layer(tiny_model_dir: Path, compute: Any) -> None:
    name, device = str(tiny_model_dir), torch.device("cuda", 0)
    plain = load_frozen_model(name, dtype="bfloat16", device=device)
    model = load_frozen_model(name, dtype="bfloat16", device=device, compute=compute)

    assert {t.device for t in (*model.parameters(), *model.buffers())} == {device}
    assert INT8 in {p.dtype for p in model.parameters()}
    with torch.no_grad():
        expected, scores = (m(IDS.to(device)).logits.float() for m in (plain, model))
    assert not torch.equal(scores, expected)
    assert (scores - expected).norm() / expected.norm() < 0.3
