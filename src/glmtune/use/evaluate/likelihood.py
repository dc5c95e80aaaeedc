"""Log-likelihoods of continuations and texts, over packs.

    example     [gMASK] sop t1 t2 t3 t4           labels say which tokens are measured
    measured                t1 t2 t3 t4           the first token of a row has nothing before it

Where several continuations of one prompt differ in a single token, as A, B, C and D do, the prompt
is computed once and the scores of these tokens are read from its last position.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from glmtune.data.batches import pack_examples
from glmtune.data.packing import group_rows
from glmtune.errors import CheckpointError
from glmtune.kernels.packed_attention import NAME
from glmtune.objective.next_token import labels_of_next
from glmtune.objective.preference import sequence_logps
from glmtune.template.base import IGNORE, Example

TOKENS_PER_ROW = 64  # of a pack, times the batch size; a longer example is a pack of its own


@contextmanager
def _packs(model: Any) -> Iterator[None]:
    """Temporarily use attention over packs, dropout off."""
    before, was_training = model.config._attn_implementation, model.training
    model.eval()
    if before != NAME:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.train(was_training)
        if before != NAME:
            model.set_attn_implementation(before)


@torch.no_grad()
def log_likelihoods(
    model: Any, examples: Sequence[Example], batch_size: int
) -> Iterator[tuple[int, float]]:
    """Sum the log-probabilities of the labels of each example.

    Args:
        model: a causal language model, with or without an adapter.
        examples: encoded rows; their labels say what is measured.
        batch_size: decides how many tokens go through the model together.

    Yields:
        The index of an example, and its sum in nats.

    Raises:
        CheckpointError: a score is not finite.
    """
    lengths = [len(example.input_ids) for example in examples]
    with _packs(model):
        for rows in group_rows(range(len(examples)), lengths, TOKENS_PER_ROW * batch_size):
            part = pack_examples(examples, rows).to(model.device)
            sums = sequence_logps(model, part)
            _check(sums)
            yield from zip(rows, sums.tolist(), strict=True)


@torch.no_grad()
def greedy_log_likelihoods(
    model: Any, examples: Sequence[Example], batch_size: int
) -> Iterator[tuple[int, float, bool]]:
    """As `log_likelihoods`, and whether each label is the likeliest token at its position."""
    lengths = [len(example.input_ids) for example in examples]
    with _packs(model):
        for rows in group_rows(range(len(examples)), lengths, TOKENS_PER_ROW * batch_size):
            part = pack_examples(examples, rows).to(model.device)
            following = labels_of_next(part.labels)
            predicts = following != IGNORE  # (1, seq)
            output = model(**part.inputs(), use_cache=False, logits_to_keep=predicts)
            logits, targets = output.logits.flatten(0, -2).float(), following[predicts]
            logps = -cross_entropy(logits, targets, reduction="none")
            _check(logps)
            is_greedy = logits.argmax(-1) == targets
            counts = [sum(label != IGNORE for label in examples[row].labels[1:]) for row in rows]
            parts = zip(
                rows, torch.split(logps, counts), torch.split(is_greedy, counts), strict=True
            )
            for row, own, greedy in parts:
                yield row, float(own.sum()), bool(greedy.all())


@torch.no_grad()
def next_token_logps(
    model: Any, prompts: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[int, list[float]]]:
    """Return the log-probabilities of a few tokens after each prompt.

    Args:
        model: a causal language model, with or without an adapter.
        prompts: token ids.
        chosen: the tokens to score after each.
        batch_size: as for `log_likelihoods`.

    Yields:
        The index of a prompt, and the log-probability of each of its tokens.

    Raises:
        CheckpointError: a score is not finite.
    """
    examples = [Example(list(ids), [IGNORE] * len(ids)) for ids in prompts]
    lengths = [len(ids) for ids in prompts]
    with _packs(model):
        for rows in group_rows(range(len(examples)), lengths, TOKENS_PER_ROW * batch_size):
            part = pack_examples(examples, rows).to(model.device)
            ends = torch.tensor([lengths[row] for row in rows]).cumsum(0) - 1
            output = model(**part.inputs(), use_cache=False, logits_to_keep=ends)
            logps = output.logits[0].float().log_softmax(-1)  # (rows, vocab)
            _check(logps.amax(-1))
            for row, scores in zip(rows, logps, strict=True):
                yield row, [float(scores[token]) for token in chosen[row]]


def _check(scores: torch.Tensor) -> None:
    if not scores.isfinite().all():
        raise CheckpointError(
            "the model's scores are not finite. float16 may have overflowed: try --dtype bfloat16. "
            "Otherwise the weights, or the adapter's, are damaged."
        )
