"""A loss over chunks of positions is the loss over all of them, and so is its gradient."""

import torch
from torch import Tensor, nn

from glmtune.kernels.chunked_loss import (
    BLOCK_LOGITS,
    CHUNK_LOGITS,
    cross_entropy_sum,
    loss_by_chunks,
    rows_per_chunk,
    smoothed_cross_entropy_sum,
)


def test_the_chunks_of_a_loss_and_their_gradients_add_up_to_the_full_ones() -> None:
    torch.manual_seed(0)
    output_layer = nn.Linear(6, CHUNK_LOGITS // 8, bias=False).requires_grad_(False)
    output_layer.double()
    targets = torch.randint(100, (17,))
    assert len(targets) > 2 * rows_per_chunk(output_layer)  # two chunks are not enough
    whole = torch.randn(17, 6, dtype=torch.float64, requires_grad=True)
    chunked = whole.detach().clone().requires_grad_()

    expected = cross_entropy_sum(output_layer(whole), targets)
    loss = loss_by_chunks(chunked, output_layer, targets, cross_entropy_sum)
    (expected / 3).backward()
    (loss / 3).backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(chunked.grad, whole.grad, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            loss_by_chunks(chunked, output_layer, targets, cross_entropy_sum), expected
        )


def test_an_output_layer_that_is_trained_gets_its_gradient() -> None:
    output_layer = nn.Linear(6, 11, bias=False)

    loss_by_chunks(torch.randn(4, 6), output_layer, torch.arange(4), cross_entropy_sum).backward()

    assert output_layer.weight.grad is not None
    assert output_layer.weight.grad.any()


def test_without_gradients_logits_exist_by_chunks_even_of_a_layer_that_could_learn() -> None:
    output_layer = torch.nn.Linear(4, 2**15)
    hidden, seen = torch.randn(2 * rows_per_chunk(output_layer) + 1, 4), []

    def record(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(logits))
        return cross_entropy_sum(logits, targets)

    with torch.no_grad():
        loss_by_chunks(hidden, output_layer, torch.zeros(len(hidden), dtype=torch.long), record)

    number, at_most = len(hidden), BLOCK_LOGITS // 2**15
    assert sum(seen) == number
    assert max(seen) <= at_most < rows_per_chunk(output_layer)


def test_the_factor_of_a_chunked_loss_is_not_rounded_to_the_precision_of_its_gradient() -> None:
    torch.manual_seed(0)
    output_layer = nn.Linear(8, 16, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(64, 8, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(16, (64,))
    third = torch.tensor(1 / 3)  # rounded to bfloat16 it is 0.13 % too large

    (once,) = torch.autograd.grad(
        loss_by_chunks(hidden, output_layer, targets, cross_entropy_sum), hidden
    )
    (scaled,) = torch.autograd.grad(
        loss_by_chunks(hidden, output_layer, targets, cross_entropy_sum) * third, hidden
    )

    torch.testing.assert_close(scaled, (once.float() / 3).to(torch.bfloat16), atol=0, rtol=0)


def test_smoothing_mixes_the_target_with_all_tokens_alike() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    targets = torch.tensor([0, 1])
    nats = -logits.log_softmax(-1)
    expected = 0.8 * (nats[0, 0] + nats[1, 1]) + 0.2 * nats.mean(-1).sum()

    loss = smoothed_cross_entropy_sum(logits, targets, label_smoothing=0.2)

    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, cross_entropy_sum(logits, targets))


def test_a_gpu_gets_chunks_of_full_tiles() -> None:
    output_layer = nn.Linear(4, 65024, bias=False, device="meta")
    assert rows_per_chunk(output_layer, torch.device("cuda")) == 1024
    assert rows_per_chunk(output_layer) == 258
    output_layer.requires_grad_(False)
    hidden = torch.zeros(1500, 4, device="meta", requires_grad=True)
    seen: list[int] = []

    def record(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        return cross_entropy_sum(logits, targets)

    loss_by_chunks(hidden, output_layer, torch.zeros(1500, dtype=torch.long, device="meta"), record)

    blocks = [258, 258, 252]  # in float32 at a time, of a chunk of 768 = 6 * 128 rows
    assert seen == [*blocks, 258, 258, 216]
