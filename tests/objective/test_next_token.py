"""The loss is a sum over learned tokens, and is divided by their number once per step."""

from types import SimpleNamespace
from typing import Any

import torch
from tests.padding import pad_examples
from torch import Tensor, nn

from glmtune.data.batches import MicroBatch
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
