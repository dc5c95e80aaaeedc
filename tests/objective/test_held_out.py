"""The held-out loss is a sum over rows, however they are packed and whichever process has them."""

from typing import Any

import pytest
import torch
from torch import nn

from glmtune.errors import TrainingError
from glmtune.model.load import load_shapes
from glmtune.objective.held_out import held_out_loss
from glmtune.template.base import IGNORE, Example

CPU = torch.device("cpu")
EXAMPLES = [
    Example(ids, [IGNORE, *ids[1:]])
    for ids in ([5, 6, 7], [8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18])
]
LENGTHS = [len(example.input_ids) for example in EXAMPLES]


@pytest.fixture(scope="module")
def model() -> Any:
    """nano with random weights and dropout, in training."""
    made: Any = load_shapes("nano", dtype=torch.float32, attn_implementation="packed")
    made.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.1)
    for module in made.modules():
        if hasattr(module, "hidden_dropout"):
            module.hidden_dropout = 0.5
    return made.train()


def loss_of(model: Any, **options: Any) -> tuple[float, float]:
    settings: dict[str, Any] = {"max_tokens": 8, "device": CPU, "lengths": LENGTHS, **options}
    return held_out_loss(model, EXAMPLES, range(len(EXAMPLES)), **settings)


def test_dropout_is_off_and_the_training_mode_comes_back(model: Any) -> None:
    assert loss_of(model) == loss_of(model)
    assert model.training


def test_the_sum_does_not_depend_on_the_packs(model: Any) -> None:
    together, apart = loss_of(model, max_tokens=100), loss_of(model, max_tokens=5)

    assert together[1] == apart[1] == sum(LENGTHS) - len(LENGTHS)
    assert together[0] == pytest.approx(apart[0], rel=1e-5)


def test_the_shares_of_three_processes_add_up_to_all(model: Any) -> None:
    shares = [loss_of(model, max_tokens=5, process_index=i, num_processes=3) for i in range(3)]

    total, count = (sum(values) for values in zip(*shares, strict=True))
    assert count == sum(LENGTHS) - len(LENGTHS)
    assert total == pytest.approx(loss_of(model, max_tokens=5)[0], rel=1e-5)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_rows(model: Any) -> None:
    head: nn.Linear = model.get_output_embeddings()
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.weight[13] = float("nan")

    with pytest.raises(TrainingError, match=r"loss is nan on held-out rows \[.*\]"):
        loss_of(model)

    head.weight.data = before
