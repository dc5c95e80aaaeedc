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

`generate` and `generate_stepwise` read an iterable of prompts. A server, whose prompts come and go
at any time, drives a `Batch` itself.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol
from weakref import WeakKeyDictionary

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
from glmtune.kernels.row_cache import (
    ATTENTION,
    RowCache,
    VirtualTokens,
    supports_row_cache,
    virtual_tokens_of,
)
from glmtune.kernels.slot_cache import SlotCache, supports_slot_cache
from glmtune.use.decoding import Decoder
from glmtune.use.device_sampling import UniformNumbers
from glmtune.use.host_sampling import TokenScore, explain_not_finite, sample

BATCH_SIZE = 32  # sequences at once, which about saturates a CPU
PROMPT_TOKENS = 1024  # in one step, unless a single prompt is longer
PROMPT_TOKENS_ON_GPU = 8192
PROMPTS_AT_ONCE = 4  # on a GPU a quarter of a batch joins together
LEAST_PROMPT_TOKENS = 16  # of each prompt that is computed in parts


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled. The defaults are those of ChatGLM3's own `chat`.

    Attributes:
        max_new_tokens: the longest completion.
        temperature: divides the scores; 0 always takes the most likely token.
        top_p: only the most likely tokens that together have this probability; 1 is all.
        top_k: only this many of the most likely tokens; 0 is all.
        repetition_penalty: above 1, tokens of the prompt and the completion become less likely.
        presence_penalty: is subtracted from the score of every token of the completion.
        frequency_penalty: likewise, times how often the completion has the token.
        seed: makes sampling repeatable; None samples differently each time.
    """

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the most likely token is taken as the model scores it."""
        return (
            self.temperature == 0
            and self.repetition_penalty == 1
            and not self.presence_penalty
            and not self.frequency_penalty
        )

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


AnyCache = RowCache | DynamicCache


def make_cache(model: Any, batch_size: int = 1, virtual: VirtualTokens | None = None) -> AnyCache:
    """Make a cache of keys and values for `batch_size` sequences.

    A model on a GPU decodes from slots, in steps that are captured as CUDA graphs. A model whose
    layers keep something else than keys and values generates one sequence at a time, with
    transformers' own cache.

    Args:
        model: in evaluation mode.
        batch_size: sequences at once.
        virtual: its virtual tokens; None computes them.
    """
    if supports_row_cache(model):
        kind = SlotCache if supports_slot_cache(model) else RowCache
        return kind(batch_size, virtual_tokens_of(model) if virtual is None else virtual)
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
        cache = _take_cache(model, batch_size)
        for completion, is_finished in generate_stepwise(
            model, requests, cache, stop_ids=stop_ids, sampling=sampling
        ):
            if is_finished:
                yield completion
        if isinstance(cache, SlotCache) and not was_training:
            _kept[model] = cache
    finally:
        model.train(was_training)


_kept: MutableMapping[Any, SlotCache] = WeakKeyDictionary()
"""The last cache of models that only generate, with its graphs, which take long to capture."""


def _take_cache(model: Any, batch_size: int) -> AnyCache:
    """Take the cache that the last call has left, or make one."""
    kept = _kept.pop(model, None)
    if (
        kept is not None
        and kept.num_rows == batch_size
        and supports_slot_cache(model)
        and virtual_tokens_of(model).number == kept.virtual.number == 0
    ):
        return kept
    return make_cache(model, batch_size)


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
    batch = Batch(model, cache)
    with row_attention(model, cache):
        while True:
            if batch.wants_more:
                admitted = _admit(
                    waiting, batch.num_free, batch.num_prompt_tokens, stop_ids, sampling
                )
                for slot in admitted:
                    batch.join(slot)
            if not batch.slots:
                return
            changed = batch.step()
            if failed := next((slot for slot in changed if slot.failure), None):
                raise CheckpointError(failed.failure)
            for slot in changed:
                yield Completion(slot.index, slot.completion, slot.has_ended), slot.is_finished
            for slot in reversed([slot for slot in batch.slots if slot.is_finished]):
                batch.leave(slot)


def _admit(
    waiting: Iterator[tuple[int, Request]],
    num_free: int,
    max_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling,
) -> Iterator["Slot"]:
    """Take prompts for the next step, at most as many as there are free slots."""
    num_tokens = 0
    for index, request in islice(waiting, num_free):
        yield Slot(request, sampling, stop_ids, index)
        num_tokens += len(request.ids) - request.num_cached
        if num_tokens >= max_tokens:
            break


class Constraint(Protocol):
    """Restricts what a completion may be."""

    def restrict(self, completion: Sequence[int], scores: Tensor) -> Tensor:
        """Return the scores, (vocab,), with those of tokens that may not come next at -inf."""


class Slot:
    """A sequence that is generated in a batch.

    Args:
        request: the prompt.
        sampling: how its tokens are sampled.
        stop_ids: tokens that end it.
        index: of the request.
        group: sequences of one group may copy keys and values of a common prefix.
        constraint: on the completion.
        num_top: record the score of every token, and of this many others; None records nothing.

    Attributes:
        ids: prompt and completion so far.
        num_cached: of these, how many the cache holds.
        completion: the tokens so far.
        scores: of those tokens, if asked for.
        uniform: numbers by which a GPU samples it.
        failure: why it cannot be continued, "" while it can.
    """

    def __init__(
        self,
        request: Request,
        sampling: Sampling,
        stop_ids: Sequence[int],
        index: int = 0,
        *,
        group: str = "",
        constraint: Constraint | None = None,
        num_top: int | None = None,
    ) -> None:
        self.request, self.sampling, self.stop_ids = request, sampling, stop_ids
        self.index, self.group = index, group
        self.constraint, self.num_top = constraint, num_top
        self.processors = sampling.processors()
        self.ids = list(request.ids)
        self.num_cached = request.num_cached
        self.completion: list[int] = []
        self.scores: list[TokenScore] = []
        self.failure = ""
        self.uniform = UniformNumbers(request.generator)

    @property
    def has_ended(self) -> bool:
        """Whether its last token is a stop token."""
        return bool(self.completion) and self.completion[-1] in self.stop_ids

    @property
    def is_plainly_sampled(self) -> bool:
        """Whether its tokens are sampled by temperature, top-p and top-k alone."""
        own = self.sampling
        is_penalized = own.presence_penalty or own.frequency_penalty or own.repetition_penalty != 1
        is_special = self.constraint is not None or self.num_top is not None or self.failure
        return own.temperature > 0 and not is_penalized and not is_special

    @property
    def is_sampled_on_device(self) -> bool:
        """Whether a GPU can sample it by itself."""
        return self.constraint is None and self.num_top is None

    @property
    def is_finished(self) -> bool:
        """Whether it ended, reached its limit, or failed."""
        is_full = len(self.completion) >= self.request.max_new_tokens
        return is_full or self.has_ended or bool(self.failure)


@dataclass(slots=True)
class _Prefix:
    """Keys and values that a sequence left in the cache."""

    group: str
    ids: list[int]
    last_used: int


class Batch:
    """Sequences that are generated together, and join and leave between two tokens.

    They use the first rows of the cache, in their order. With more rows than `batch_size`, a row
    whose sequence has left keeps its keys and values: a sequence that joins copies those of the
    longest beginning that it shares with any row of its group, and computes the rest.

    Args:
        model: a causal language model in evaluation mode, inside `row_attention`.
        cache: from `make_cache`.
        batch_size: the most sequences at once; None is what the cache holds.
        prompt_tokens: compute at most about this many tokens of prompts in a step, those of short
            prompts first, so that nobody waits for a long one; None computes prompts whole.
        before_step: is called with the sequences and their numbers of new tokens, but not before
            steps that a `Decoder` takes by itself.
    """

    def __init__(
        self,
        model: Any,
        cache: AnyCache,
        batch_size: int | None = None,
        *,
        prompt_tokens: int | None = None,
        before_step: Callable[[Sequence[Slot], Sequence[int]], None] | None = None,
    ) -> None:
        self._model, self._cache = model, cache
        self._num_rows = cache.num_rows if isinstance(cache, RowCache) else 1
        self.batch_size = min(batch_size or self._num_rows, self._num_rows)
        self._prompt_tokens, self._before_step = prompt_tokens, before_step
        self.slots: list[Slot] = []
        self._prefixes: dict[int, _Prefix] = {}  # by row, which no sequence uses
        self._clock = 0
        self._decoder = Decoder(model, cache) if isinstance(cache, SlotCache) else None

    @property
    def num_free(self) -> int:
        """How many sequences may join."""
        return self.batch_size - len(self.slots)

    @property
    def num_prompt_tokens(self) -> int:
        """About how many tokens of prompts are worth a step."""
        return PROMPT_TOKENS if self._decoder is None else PROMPT_TOKENS_ON_GPU

    @property
    def wants_more(self) -> bool:
        """Whether it is time for prompts.

        Captured steps take a fraction of the time of a step with a prompt, so on a GPU prompts wait
        until there are some together.
        """
        enough = 1 if self._decoder is None else -(-self.batch_size // PROMPTS_AT_ONCE)
        return self.num_free >= enough or not self.slots

    @property
    def keeps_prefixes(self) -> bool:
        """Whether rows keep what a sequence left."""
        return self._num_rows > self.batch_size

    def join(self, slot: Slot) -> None:
        """Add a sequence, which gets its first token in the next step."""
        assert self.num_free > 0
        if self.keeps_prefixes:
            slot.num_cached = self._take_prefix(slot)
        self.slots.append(slot)

    def leave(self, slot: Slot) -> None:
        """Remove a sequence; the last one takes its row."""
        if self._decoder is not None:
            self._decoder.leave(slot)
        index, last = self.slots.index(slot), len(self.slots) - 1
        if index < last:
            assert isinstance(self._cache, RowCache)
            if self.keeps_prefixes:
                self._cache.swap(index, last)
            else:
                self._cache.replace(index, last)
            self.slots[index] = self.slots[last]
        self.slots.pop()
        self._clock += 1
        if self.keeps_prefixes and slot.num_cached and not slot.failure:
            self._prefixes[last] = _Prefix(slot.group, slot.ids[: slot.num_cached], self._clock)
        slot.num_cached = 0  # of a row that is another's now
        if isinstance(self._cache, DynamicCache):
            self._cache = DynamicCache(config=self._model.config)

    def step(self) -> list[Slot]:
        """Compute one step, and return the sequences that got a token or failed."""
        lengths = self._new_tokens()
        if self._decoder is not None and self._decoder.can_step(self.slots, lengths):
            return self._decoder.step(self.slots)
        if self._before_step is not None:
            self._before_step(self.slots, lengths)
        scores = self._score(lengths)  # (slots, vocab), float32
        for slot, length in zip(self.slots, lengths, strict=True):
            slot.num_cached += length
        ready = [i for i, slot in enumerate(self.slots) if slot.num_cached == len(slot.ids)]
        slots = [self.slots[i] for i in ready]
        choose = sample if self._decoder is None else self._decoder.sample
        tokens = choose(scores[ready], slots)
        for slot, token_id in zip(slots, tokens, strict=True):
            if not slot.failure:
                slot.ids.append(token_id)
                slot.completion.append(token_id)
        return slots

    def _new_tokens(self) -> list[int]:
        """Decide how many tokens of every sequence are computed in the next step."""
        missing = [len(slot.ids) - slot.num_cached for slot in self.slots]
        if self._prompt_tokens is None or sum(missing) <= self._prompt_tokens:
            return missing
        lengths, room = [1] * len(missing), self._prompt_tokens
        for index in sorted(range(len(missing)), key=missing.__getitem__):
            lengths[index] = min(missing[index], max(room, LEAST_PROMPT_TOKENS))
            room -= lengths[index]
        return lengths

    def _score(self, lengths: Sequence[int]) -> Tensor:
        """Run the new tokens of every slot, and score the next one: (slots, vocab), float32."""
        if self._decoder is not None and self._decoder.can_score(lengths):
            logits = self._decoder.score(self.slots)
        else:
            logits = self._run(lengths)
        scores = logits.float()
        if not scores.isfinite().all():
            for slot, is_finite in zip(self.slots, scores.isfinite().all(-1), strict=True):
                slot.failure = "" if is_finite else explain_not_finite(slot, logits.dtype)
        return scores

    @torch.no_grad()
    @without_cudnn()
    def _run(self, lengths: Sequence[int]) -> Tensor:
        """Run the new tokens of every slot through the model: (slots, vocab)."""
        cached = [slot.num_cached for slot in self.slots]
        spans = zip(self.slots, cached, lengths, strict=True)
        input_ids = torch.tensor(
            [[token for slot, past, length in spans for token in slot.ids[past : past + length]]]
        )  # (1, seq)
        if isinstance(self._cache, RowCache):
            inputs = self._cache.feed(cached, lengths, self._model.device)
        else:
            inputs = {"past_key_values": self._cache}
        is_faster = onednn_is_faster(self._model, input_ids.size(1))
        with nullcontext() if is_faster else onednn(enabled=False):
            output = self._model(
                input_ids=input_ids.to(self._model.device),
                use_cache=True,
                logits_to_keep=torch.tensor(lengths).cumsum(0) - 1,  # the last of every slot
                **inputs,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _take_prefix(self, slot: Slot) -> int:
        """Fill the row of a new sequence with a prefix it shares; return how many tokens."""
        assert isinstance(self._cache, RowCache)
        self._clock += 1
        row = len(self.slots)
        rows = [
            (i, other.group, other.ids[: other.num_cached]) for i, other in enumerate(self.slots)
        ]
        rows += [(i, prefix.group, prefix.ids) for i, prefix in self._prefixes.items()]
        num_shared, best = max(
            ((_num_shared(slot.ids, ids), i) for i, group, ids in rows if group == slot.group),
            default=(0, row),
        )
        if best in self._prefixes and num_shared == len(self._prefixes[best].ids):
            self._exchange(row, best)  # the new sequence continues all of it
            return num_shared
        if best in self._prefixes:
            self._prefixes[best].last_used = self._clock
        if row in self._prefixes:
            self._save_prefix(row)
        if num_shared and best != row:
            self._cache.copy(row, best, num_shared)
        self._prefixes.pop(row, None)
        return num_shared

    def _exchange(self, row: int, best: int) -> None:
        """Take the prefix of a row as it is, and put another one in its place."""
        assert isinstance(self._cache, RowCache)
        del self._prefixes[best]
        if best != row:
            self._cache.swap(row, best)
            if row in self._prefixes:
                self._prefixes[best] = self._prefixes.pop(row)

    def _save_prefix(self, row: int) -> None:
        """Move a prefix out of a row, over the one that was not used for the longest time."""
        assert isinstance(self._cache, RowCache)
        unused = set(range(row + 1, self._num_rows)) - self._prefixes.keys()
        oldest = min(self._prefixes, key=lambda each: self._prefixes[each].last_used)
        to = min(unused, default=oldest)
        if to != row:
            self._cache.copy(to, row, len(self._prefixes[row].ids))
            self._prefixes[to] = self._prefixes[row]


def _num_shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Count the tokens of a common beginning; at least one of `ids` is left to compute."""
    longest = min(len(ids) - 1, len(others))
    return next((i for i in range(longest) if ids[i] != others[i]), longest)


@contextmanager
def row_attention(model: Any, cache: AnyCache | None) -> Iterator[None]:
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
