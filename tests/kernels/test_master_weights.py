"""Half-precision weights learn through float32 masters, and are used rounded."""

from typing import Any

import pytest
import torch
from torch import nn

from glmtune.kernels.half_precision import FEW_ROWS, widen
from glmtune.kernels.master_weights import keep_masters


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 5)
        self.frozen = nn.Linear(5, 5)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.frozen(self.linear(self.norm(self.embedding(ids))))


def small(*, wide: bool) -> Small:
    torch.manual_seed(0)
    model = Small().to(torch.bfloat16)
    model.frozen.requires_grad_(False)
    if wide:  # as on a CPU without bfloat16 products
        widen(model)
        for module in (model.embedding, model.norm, model.linear):
            module.requires_grad_(True)
    return model


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("num_ids", [FEW_ROWS, 3 * FEW_ROWS])
def test_masters_compute_what_their_rounding_computes(wide: bool, num_ids: int) -> None:
    ids = torch.arange(num_ids) % 7
    model, plain = small(wide=wide), small(wide=wide)
    names = list(plain.state_dict())

    keep_masters(model)

    assert list(model.state_dict()) == names
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32
                parameter.add_(1e-4 * torch.randn_like(parameter))
        plain.load_state_dict(model.state_dict())  # which rounds
        assert torch.equal(model(ids), plain(ids))
    assert model.frozen.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("wide", [False, True])
def test_steps_below_the_rounding_add_up_in_the_masters(wide: bool) -> None:
    model = small(wide=wide)
    keep_masters(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    for _ in range(3):
        model(torch.arange(21) % 7).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for name, parameter in model.named_parameters():
        moved = (parameter != before[name]).float().mean().item()
        assert moved == 0 if name.startswith("frozen") else moved > 0.8, (name, moved)
    assert isinstance(model.linear, nn.Linear)
    assert isinstance(model.embedding, nn.Embedding)
