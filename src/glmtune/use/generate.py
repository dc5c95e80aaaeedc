"""Prompts -> the ids that a model writes behind them, many at once: one generator for all.

Chat, `glmtune predict` and the proofs of a run draw their tokens here, rather than by
transformers' `generate`: a caller may stop between two tokens, scores that are not finite are
an error instead of an answer, keys and values of what was said before need not be computed
again, and a row that has ended makes room for the next prompt at once:

    step    1    2    3    4    5    6         rows = 2
    row 0   AAA  a    a    a    DD   d         capitals are prompts, which are run in one go
    row 1   BB   b    CCCC c    c    c         nothing is padding

What is written does not depend on which rows are written together: greedy answers are those
of one row at a time (up to rounding, in half precision), and every row draws from a generator
of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmtune.errors import CheckpointError
from glmtune.kernels.half_precision import onednn, onednn_is_faster
from glmtune.kernels.row_cache import ATTENTION, RowCache, supports_row_cache, virtual_tokens_of

ROWS = 32  # written at once: about where a CPU is as busy as it can be
PROMPT_TOKENS = 1024  # run in one step, unless a single prompt is longer


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are those of ChatGLM3's own `chat`.

    Attributes:
        max_new_tokens: the longest answer.
        temperature: divides the scores; 0 always takes the likeliest token.
        top_p: only the likeliest tokens that together have this probability; 1 is all.
        top_k: only so many of the likeliest tokens; 0 is all.
        repetition_penalty: above 1, tokens of the prompt and the answer become less likely.
        seed: makes a session repeatable; None draws another each time.
    """

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def processors(self) -> LogitsProcessorList:
        """Give what shapes the scores, in the order of transformers."""
        result = LogitsProcessorList()
        if self.repetition_penalty != 1:
            result.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature not in (0, 1):
            result.append(TemperatureLogitsWarper(self.temperature))
        if self.temperature and self.top_k:
            result.append(TopKLogitsWarper(self.top_k))
        if self.temperature and self.top_p < 1:
            result.append(TopPLogitsWarper(self.top_p))
        return result

    def generator(self, device: torch.device, number: int = 0) -> torch.Generator:
        """Make what draws the tokens of one row; each `number` has its own."""
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed + number)
        return generator


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to write behind.

    Attributes:
        ids: the prompt, at least one token.
        max_new_tokens: the longest answer, with the token that ends it; at least 1.
        generator: draws, on the model's device; None needs a temperature of 0.
        num_cached: tokens of the prompt that the cache holds already, fewer than all.
    """

    ids: Sequence[int]
    max_new_tokens: int
    generator: torch.Generator | None = None
    num_cached: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """What was written behind a prompt.

    Attributes:
        index: which of the requests it answers.
        ids: with the one that ends the answer.
        has_ended: whether the model ended it, rather than the limit.
    """

    index: int
    ids: list[int]
    has_ended: bool


@dataclass(slots=True)
class _Row:
    """A row that is being written."""

    index: int
    request: Request
    ids: list[int]  # prompt and answer so far
    num_cached: int
    written: list[int] = field(default_factory=list)


AnyCache = RowCache | DynamicCache


def make_cache(model: Any, num_rows: int = 1) -> AnyCache:
    """Make what keeps the keys and values of `num_rows` rows.

    A model whose layers keep something else writes one row at a time, with transformers' own
    cache.

    Args:
        model: in eval mode; what it puts in front of every text is made now.
        num_rows: how many rows are written at once.
    """
    if supports_row_cache(model):
        return RowCache(num_rows, virtual_tokens_of(model))
    return DynamicCache(config=model.config)


def keep_cached(cache: AnyCache, num_kept: int, num_cached: int) -> bool:
    """Keep the first tokens of the only row in a cache; False when it cannot be done."""
    if isinstance(cache, RowCache):
        return True  # what is behind them is overwritten
    if not cache.is_croppable or cache.get_seq_length() != num_cached:
        return False
    cache.crop(num_kept - num_cached)  # a negative number is how many go
    return True


def write(
    model: Any,
    requests: Iterable[Request],
    *,
    stop_ids: Sequence[int],
    sampling: Sampling,
    num_rows: int = ROWS,
) -> Iterator[Written]:
    """Write behind many prompts, and give each answer as soon as it is whole.

    Args:
        model: a causal language model, with an adapter over it or not. Its training mode is put
            back afterwards.
        requests: read as there is room for them.
        stop_ids: what ends an answer.
        sampling: how to draw.
        num_rows: how many are written at once.

    Raises:
        CheckpointError: the scores of a token are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        for written, is_whole in draw(
            model, requests, make_cache(model, num_rows), stop_ids=stop_ids, sampling=sampling
        ):
            if is_whole:
                yield written
    finally:
        model.train(was_training)


def draw(
    model: Any,
    requests: Iterable[Request],
    cache: AnyCache,
    *,
    stop_ids: Sequence[int],
    sampling: Sampling,
) -> Iterator[tuple[Written, bool]]:
    """Write behind prompts, and give each answer so far after each of its tokens.

    Args:
        model: a causal language model in eval mode.
        requests: read as there is room for them.
        cache: from `make_cache`; says how many rows are written at once. It then holds the
            prompt and the answer of the last row, but for the very last token.
        stop_ids: what ends an answer.
        sampling: how to draw.

    Yields:
        The answer so far, whose `ids` go on growing, and whether it is whole.

    Raises:
        CheckpointError: the scores of a token are not finite.
    """
    waiting = enumerate(requests)
    num_rows = cache.num_rows if isinstance(cache, RowCache) else 1
    processors = sampling.processors()
    rows: list[_Row] = []
    with _attending(model, cache):
        while True:
            num_old = len(rows)
            rows += _admit(waiting, num_rows - num_old)
            if not rows:
                return
            scores = _score(model, rows, cache)  # (rows, vocab), float32
            tokens = _choose(scores, rows, processors, sampling)
            for row, token_id in zip(rows, tokens, strict=True):
                row.num_cached = len(row.ids)
                row.ids.append(token_id)
                row.written.append(token_id)
            is_whole = [
                row.written[-1] in stop_ids or len(row.written) >= row.request.max_new_tokens
                for row in rows
            ]
            for row, whole in zip(rows, is_whole, strict=True):
                yield Written(row.index, row.written, row.written[-1] in stop_ids), whole
            for slot in reversed([slot for slot, whole in enumerate(is_whole) if whole]):
                last = rows.pop()
                if slot < len(rows):
                    rows[slot] = last
                    assert isinstance(cache, RowCache)
                    cache.replace(slot, len(rows))
            if not rows and isinstance(cache, DynamicCache):
                cache = DynamicCache(config=model.config)


def _admit(waiting: Iterator[tuple[int, Request]], num_free: int) -> list[_Row]:
    """Take prompts for the next step, as many as there is room for."""
    new: list[_Row] = []
    num_tokens = 0
    for index, request in islice(waiting, num_free):
        new.append(_Row(index, request, list(request.ids), request.num_cached))
        num_tokens += len(request.ids) - request.num_cached
        if num_tokens >= PROMPT_TOKENS:
            break
    return new


@torch.no_grad()
def _score(model: Any, rows: Sequence[_Row], cache: AnyCache) -> Tensor:
    """Run what is new of every row, and score what may follow: (rows, vocab), float32."""
    fresh = [row.ids[row.num_cached :] for row in rows]
    lengths = [len(ids) for ids in fresh]
    if isinstance(cache, RowCache):
        inputs = cache.feed([row.num_cached for row in rows], lengths, model.device)
    else:
        inputs = {"past_key_values": cache}
    input_ids = torch.tensor([[token for ids in fresh for token in ids]])  # (1, seq)
    is_faster = onednn_is_faster(model, input_ids.size(1))
    with nullcontext() if is_faster else onednn(enabled=False):
        output = model(
            input_ids=input_ids.to(model.device),
            use_cache=True,
            logits_to_keep=torch.tensor(lengths).cumsum(0) - 1,  # the last of every row
            **inputs,
        )
    scores: Tensor = output.logits[0].float()
    if not scores.isfinite().all():
        row = rows[int((~scores.isfinite()).any(-1).int().argmax())]
        raise CheckpointError(
            f"the model's scores for token {len(row.written) + 1} of the answer "
            f"are not finite, in {output.logits.dtype}. float16 may have overflowed: try "
            "--dtype bfloat16. Otherwise the weights, or the adapter's, are damaged."
        )
    return scores


def _choose(
    scores: Tensor, rows: Sequence[_Row], processors: LogitsProcessorList, sampling: Sampling
) -> list[int]:
    """Draw the next token of every row from (rows, vocab)."""
    if not sampling.temperature and not processors:
        chosen: list[int] = scores.argmax(-1).tolist()
        return chosen
    tokens = []
    for row, own in zip(rows, scores, strict=True):
        ids = torch.tensor([row.ids], device=scores.device)  # (1, seq)
        shaped = processors(ids, own[None])  # type: ignore[arg-type]  # it wants a LongTensor by name
        if sampling.temperature == 0:
            token = shaped.argmax(-1)
        else:
            token = torch.multinomial(shaped.softmax(-1), 1, generator=row.request.generator)
        tokens.append(int(token))
    return tokens


@contextmanager
def _attending(model: Any, cache: AnyCache) -> Iterator[None]:
    """Let a model attend to rows meanwhile, whatever attention it was loaded with."""
    before = model.config._attn_implementation
    if not isinstance(cache, RowCache) or before == ATTENTION:
        yield
        return
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
