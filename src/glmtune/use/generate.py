"""Generate continuations of prompts, many at once, with one generator for every caller.

Chat, `glmtune predict` and the proofs of a run generate here rather than with transformers'
`generate`: a caller may stop between two tokens, scores that are not finite are an error instead
of an answer, keys and values of earlier turns are reused, and when a sequence ends, the next prompt
takes its slot at once (continuous batching, on a CPU too and with virtual tokens):

    step    1    2    3    4    5    6         batch_size = 2
    slot 0  AAA  a    a    a    DD   d         capitals are prompts, computed in one pass
    slot 1  BB   b    CCCC c    c    c         nothing is padding

A completion does not depend on which sequences share a batch: greedy completions are those of one
sequence at a time (up to rounding, in half precision), and every sequence samples with its own
generator.
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
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.kernels.row_cache import ATTENTION, RowCache, supports_row_cache, virtual_tokens_of

BATCH_SIZE = 32  # sequences at once, which about saturates a CPU
PROMPT_TOKENS = 1024  # in one step, unless a single prompt is longer


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled. The defaults are those of ChatGLM3's own `chat`.

    Attributes:
        max_new_tokens: the longest completion.
        temperature: divides the scores; 0 always takes the most likely token.
        top_p: only the most likely tokens that together have this probability; 1 is all.
        top_k: only this many of the most likely tokens; 0 is all.
        repetition_penalty: above 1, tokens of the prompt and the completion become less likely.
        seed: makes sampling repeatable; None samples differently each time.
    """

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def processors(self) -> LogitsProcessorList:
        """Return the processors of the scores, in the order of transformers."""
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
        """Make the random generator of one sequence; each `number` has its own."""
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed((self.seed + number) % 2**64)
        return generator


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue.

    Attributes:
        ids: the prompt, at least one token.
        max_new_tokens: the longest completion, with the token that ends it; at least 1.
        generator: samples, on the model's device; None requires a temperature of 0.
        num_cached: tokens of the prompt that the cache holds already, fewer than all.
    """

    ids: Sequence[int]
    max_new_tokens: int
    generator: torch.Generator | None = None
    num_cached: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """The tokens that a model generated after a prompt.

    Attributes:
        index: the request that it completes.
        ids: with the stop token, if there is one.
        has_ended: whether the model ended it with a stop token, rather than the limit.
    """

    index: int
    ids: list[int]
    has_ended: bool


@dataclass(slots=True)
class _Slot:
    """A sequence of the batch that is being generated."""

    index: int
    request: Request
    ids: list[int]  # prompt and completion so far
    num_cached: int
    completion: list[int] = field(default_factory=list)


AnyCache = RowCache | DynamicCache


def make_cache(model: Any, batch_size: int = 1) -> AnyCache:
    """Make a cache of keys and values for `batch_size` sequences.

    A model whose layers keep something else than keys and values generates one sequence at a time,
    with transformers' own cache.

    Args:
        model: in evaluation mode; its virtual tokens are computed now.
        batch_size: sequences at once.
    """
    if supports_row_cache(model):
        return RowCache(batch_size, virtual_tokens_of(model))
    return DynamicCache(config=model.config)


def crop_cache(cache: AnyCache, num_kept: int, num_cached: int) -> bool:
    """Crop the only sequence of a cache to its first tokens; False if that is not possible."""
    if isinstance(cache, RowCache):
        return True  # later tokens are overwritten
    if not cache.is_croppable or cache.get_seq_length() != num_cached:
        return False
    cache.crop(num_kept - num_cached)  # a negative number removes that many
    return True


def generate(
    model: Any,
    requests: Iterable[Request],
    *,
    stop_ids: Sequence[int],
    sampling: Sampling,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Completion]:
    """Continue many prompts, and give each completion as soon as it has ended.

    Args:
        model: a causal language model, with or without an adapter. Its training mode is restored
            afterwards.
        requests: read as slots become free.
        stop_ids: tokens that end a completion.
        sampling: how to sample.
        batch_size: sequences at once.

    Raises:
        CheckpointError: the scores of a token are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        for completion, is_finished in generate_stepwise(
            model, requests, make_cache(model, batch_size), stop_ids=stop_ids, sampling=sampling
        ):
            if is_finished:
                yield completion
    finally:
        model.train(was_training)


def generate_stepwise(
    model: Any,
    requests: Iterable[Request],
    cache: AnyCache,
    *,
    stop_ids: Sequence[int],
    sampling: Sampling,
) -> Iterator[tuple[Completion, bool]]:
    """Continue prompts, and give each completion so far after each of its tokens.

    Args:
        model: a causal language model in evaluation mode.
        requests: read as slots become free.
        cache: from `make_cache`, which sets the batch size. Afterwards it holds the prompt and
            the completion of the last sequence, except for the very last token.
        stop_ids: tokens that end a completion.
        sampling: how to sample.

    Yields:
        The completion so far, to whose `ids` later tokens are appended, and whether it is finished.

    Raises:
        CheckpointError: the scores of a token are not finite.
    """
    waiting = enumerate(requests)
    batch_size = cache.num_rows if isinstance(cache, RowCache) else 1
    processors = sampling.processors()
    slots: list[_Slot] = []
    with _row_attention(model, cache):
        while True:
            slots += _admit(waiting, batch_size - len(slots))
            if not slots:
                return
            scores = _score(model, slots, cache)  # (slots, vocab), float32
            tokens = _sample(scores, slots, processors, sampling)
            for slot, token_id in zip(slots, tokens, strict=True):
                slot.num_cached = len(slot.ids)
                slot.ids.append(token_id)
                slot.completion.append(token_id)
            has_ended = [slot.completion[-1] in stop_ids for slot in slots]
            is_finished = [
                ended or len(slot.completion) >= slot.request.max_new_tokens
                for slot, ended in zip(slots, has_ended, strict=True)
            ]
            for slot, ended, finished in zip(slots, has_ended, is_finished, strict=True):
                yield Completion(slot.index, slot.completion, ended), finished
            for index in reversed([i for i, finished in enumerate(is_finished) if finished]):
                last = slots.pop()
                if index < len(slots):
                    slots[index] = last
                    assert isinstance(cache, RowCache)
                    cache.replace(index, len(slots))
            if not slots and isinstance(cache, DynamicCache):
                cache = DynamicCache(config=model.config)


def _admit(waiting: Iterator[tuple[int, Request]], num_free: int) -> list[_Slot]:
    """Take prompts for the next step, at most as many as there are free slots."""
    new: list[_Slot] = []
    num_tokens = 0
    for index, request in islice(waiting, num_free):
        new.append(_Slot(index, request, list(request.ids), request.num_cached))
        num_tokens += len(request.ids) - request.num_cached
        if num_tokens >= PROMPT_TOKENS:
            break
    return new


@torch.no_grad()
@without_cudnn()
def _score(model: Any, slots: Sequence[_Slot], cache: AnyCache) -> Tensor:
    """Run the new tokens of every slot, and score the next one: (slots, vocab), float32."""
    fresh = [slot.ids[slot.num_cached :] for slot in slots]
    lengths = [len(ids) for ids in fresh]
    if isinstance(cache, RowCache):
        inputs = cache.feed([slot.num_cached for slot in slots], lengths, model.device)
    else:
        inputs = {"past_key_values": cache}
    input_ids = torch.tensor([[token for ids in fresh for token in ids]])  # (1, seq)
    is_faster = onednn_is_faster(model, input_ids.size(1))
    with nullcontext() if is_faster else onednn(enabled=False):
        output = model(
            input_ids=input_ids.to(model.device),
            use_cache=True,
            logits_to_keep=torch.tensor(lengths).cumsum(0) - 1,  # the last of every slot
            **inputs,
        )
    scores: Tensor = output.logits[0].float()
    if not scores.isfinite().all():
        slot = slots[int((~scores.isfinite()).any(-1).int().argmax())]
        raise CheckpointError(
            f"the model's scores for token {len(slot.completion) + 1} of the answer "
            f"are not finite, in {output.logits.dtype}. float16 may have overflowed: try "
            "--dtype bfloat16. Otherwise the weights, or the adapter's, are damaged."
        )
    return scores


def _sample(
    scores: Tensor, slots: Sequence[_Slot], processors: LogitsProcessorList, sampling: Sampling
) -> list[int]:
    """Sample the next token of every slot from (slots, vocab)."""
    if not sampling.temperature and not processors:
        likeliest: list[int] = scores.argmax(-1).tolist()
        return likeliest
    tokens = []
    for slot, own in zip(slots, scores, strict=True):
        ids = torch.tensor([slot.ids], device=scores.device)  # (1, seq)
        processed = processors(ids, own[None])  # type: ignore[arg-type]  # typed as LongTensor
        if sampling.temperature == 0:
            token = processed.argmax(-1)
        else:
            token = torch.multinomial(processed.softmax(-1), 1, generator=slot.request.generator)
        tokens.append(int(token))
    return tokens


@contextmanager
def _row_attention(model: Any, cache: AnyCache) -> Iterator[None]:
    """Temporarily use the attention function of `RowCache`, whatever the model was loaded with."""
    before = model.config._attn_implementation
    if not isinstance(cache, RowCache) or before == ATTENTION:
        yield
        return
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
