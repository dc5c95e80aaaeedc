from types import SimpleNamespace
from typing import Any

import torch
from tests.padding import pad_examples
from torch import Tensor, nn

from glmtune.data.batches import MicroBatch
from glmtune.kernels.chunked_loss import (
    BLOCK_LOGITS,
    CHUNK_LOGITS,
    cross_entropy_sum,
    loss_by_chunks,
    rows_per_chunk,
    smoothed_cross_entropy_sum,
)
from glmtune.objective.next_token import count_learned_tokens, next_token_loss
from glmtune.template.base import IGNORE, Example


class Bigram(nn.Module):
    """The smallest language model: the next token depends on this one alone."""

    def __init__(self, vocab: int = 11) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores = nn.Embedding(vocab, vocab)

    def forward(self, input_ids: Tensor, *, logits_to_keep: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.scores(input_ids)[logits_to_keep])


SHORT = Example([1, 2, 3], [IGNORE, IGNORE, 3])
LONG = Example([4, 5, 6, 7, 8], [IGNORE, 5, 6, 7, 8])


def by_hand(model: Bigram, example: Example) -> float:
    """-log p of every learned token, one at a time."""
    total = 0.0
    for before, (token, label) in zip(
        example.input_ids, zip(example.input_ids[1:], example.labels[1:], strict=True), strict=False
    ):
        if label != IGNORE:
            total -= torch.log_softmax(model.scores.weight[before], -1)[token].item()
    return total


def test_the_loss_is_the_sum_over_learned_tokens_and_nothing_else() -> None:
    model = Bigram()
    micro_batch = pad_examples([SHORT, LONG], pad_id=0)

    loss = next_token_loss(model, micro_batch)

    assert count_learned_tokens(micro_batch.labels) == 5
    expected = by_hand(model, SHORT) + by_hand(model, LONG)
    torch.testing.assert_close(loss.item(), expected, rtol=1e-6, atol=0)


def test_the_first_token_is_never_a_target() -> None:
    labels = torch.tensor([[1, 2, 3]])  # the first is marked, but nothing predicts it
    assert count_learned_tokens(labels) == 2


def test_splitting_a_step_into_micro_batches_leaves_the_gradient_unchanged() -> None:
    together, apart = Bigram(), Bigram()
    learned = [count_learned_tokens(pad_examples([e], 0).labels) for e in (SHORT, LONG)]
    assert learned == [1, 4]  # uneven, or a mean of means would pass too

    (next_token_loss(together, pad_examples([SHORT, LONG], 0)) / sum(learned)).backward()
    for example in (SHORT, LONG):
        (next_token_loss(apart, pad_examples([example], 0)) / sum(learned)).backward()

    torch.testing.assert_close(together.scores.weight.grad, apart.scores.weight.grad)


def test_rows_with_nothing_to_learn_give_zero_and_not_nan() -> None:
    nothing = MicroBatch(torch.tensor([[1, 2]]), torch.full((1, 2), IGNORE))
    assert next_token_loss(Bigram(), nothing).item() == 0.0


def test_half_precision_logits_are_summed_in_float32() -> None:
    model = Bigram().bfloat16()
    exact = Bigram()
    exact.scores.weight.data = model.scores.weight.data.float()

    loss = next_token_loss(model, pad_examples([LONG], 0))

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, next_token_loss(exact, pad_examples([LONG], 0)))


def test_the_loss_is_an_argument() -> None:
    def margin(logits: Tensor, targets: Tensor) -> Tensor:
        return (1 - logits.gather(1, targets[:, None])).clamp_min(0).sum()

    model = Bigram()
    expected = sum(max(0.0, 1 - model.scores.weight[a, b].item()) for a, b in [(2, 3)])
    torch.testing.assert_close(
        next_token_loss(model, pad_examples([SHORT], 0), margin).item(), expected, rtol=1e-6, atol=0
    )


def test_the_chunks_of_a_loss_add_up_to_the_whole_and_so_do_their_gradients() -> None:
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
