"""Activations that wait in the memory of the host give the same gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from glmtune.recipe.sections import TrainingSection
from glmtune.train.engines.plain import PlainEngine
from glmtune.train.offload import OffloadedActivations
from glmtune.train.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable


def gradients(model: nn.Module, x: Tensor, *contexts: Callable[[], OffloadedActivations]) -> Tensor:
    model.zero_grad()
    if contexts:
        with contexts[0]():
            loss = model(x).square().sum()
    else:
        loss = model(x).square().sum()
    loss.backward()
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def test_gradients_are_the_same_and_weights_are_not_copied() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    model[0].weight.requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    moved: list[tuple[int, ...]] = []

    class Watched(OffloadedActivations):
        def _pack(self, tensor: Tensor) -> object:
            packed = super()._pack(tensor)
            if isinstance(packed, tuple):  # the device, and the copy
                moved.append(tuple(tensor.shape))
            return packed

    expected = gradients(model, x)

    assert torch.equal(gradients(model, x, lambda: Watched(model)), expected)
    assert moved  # the input of the GELU, and what follows
    assert not {(16, 8), (8, 16), (4, 16), (16, 4)} & set(moved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_keeps_no_inputs_of_layers() -> None:
    from torch.utils.checkpoint import checkpoint_sequential

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))).cuda()
    x = torch.randn(4096, 512, device="cuda", requires_grad=True)

    def kept(*, offloads: bool) -> tuple[int, Tensor]:
        before = torch.cuda.memory_allocated()
        if offloads:
            with OffloadedActivations(model):
                loss = checkpoint_sequential(model, 8, x, use_reentrant=False).sum()
        else:
            loss = checkpoint_sequential(model, 8, x, use_reentrant=False).sum()
        held = torch.cuda.memory_allocated() - before
        model.zero_grad()
        loss.backward()
        gradient = model[0].weight.grad
        assert gradient is not None
        return held, gradient.clone()

    (without, expected), (with_offload, gradient) = kept(offloads=False), kept(offloads=True)

    assert torch.equal(gradient, expected)
    assert with_offload < without / 4


def test_a_run_on_a_cpu_says_that_nothing_is_moved(caplog: pytest.LogCaptureFixture) -> None:
    class Small(nn.Linear):
        def get_input_embeddings(self) -> nn.Module:
            return self

    model = Small(2, 2)
    section = TrainingSection(gradient_checkpointing="offload", use_cpu=True)
    with caplog.at_level("INFO"):
        engine = PlainEngine(model, section, Processes(Accelerator(cpu=True)), 0)

    assert "on a CPU, where it is the same as true" in caplog.text
    with engine.autocast():
        assert not engine._offloads
