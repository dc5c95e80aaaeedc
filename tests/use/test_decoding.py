"""Sequences that are decoded ahead of the host are those that are decoded step by step."""

import copy
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.use.test_generate import GREEDY, MODELS, STOPS, VOCAB, prompts_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from glmtune.kernels import slot_cache
from glmtune.kernels.routed_lora import RoutedLora, Router
from glmtune.kernels.row_cache import RowCache, virtual_tokens_of
from glmtune.kernels.slot_cache import ROOM, SlotCache, supports_slot_cache
from glmtune.methods import method
from glmtune.recipe.methods import LoraSection
from glmtune.use import generate as generating
from glmtune.use.device_sampling import RowSampler, SampledRow, UniformNumbers
from glmtune.use.generate import Batch, Request, Sampling, Slot, generate_stepwise, row_attention


def written(
    model: Any, requests: list[Request], cache: RowCache, sampling: Sampling = GREEDY
) -> list[list[int]]:
    steps = generate_stepwise(model, requests, cache, stop_ids=STOPS, sampling=sampling)
    done = {each.index: each.ids for each, is_finished in steps if is_finished}
    return [done[index] for index in range(len(requests))]


def slots_for(model: Any, num_rows: int) -> SlotCache:
    return SlotCache(num_rows, virtual_tokens_of(model))


class Restricted:
    """Allows even tokens only, and so must be sampled by the host."""

    def restrict(self, completion: Any, scores: Tensor) -> Tensor:
        allowed = scores.clone()
        allowed[1::2] = -torch.inf
        return allowed


@settings(max_examples=8, deadline=None)
@given(
    family=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 1000),
    batch_size=st.integers(1, 5),
    num_kept=st.integers(0, 3),
    prompt_tokens=st.sampled_from([None, 20]),
)
def test_sequences_that_join_and_leave_at_any_time_are_the_same_as_without_slots(
    family: str, seed: int, batch_size: int, num_kept: int, prompt_tokens: int | None
) -> None:
    """Some begin as others do, some leave for a while, some the host has to sample."""
    model = MODELS[family]
    beginning, other = prompts_of([30, 8], seed)

    def completions(cache: RowCache) -> list[list[int]]:
        draw = random.Random(seed)
        ends = prompts_of([draw.randint(1, 20) for _ in range(6)], seed + 1)
        prompts = [(beginning if draw.random() < 0.6 else other) + end for end in ends]
        waiting = []
        for index, prompt in enumerate(prompts):
            kind = draw.choice(["plain", "plain", "restricted", "scored"])
            waiting.append(
                Slot(
                    Request(prompt, draw.randint(1, 9)), GREEDY, STOPS, index,
                    constraint=Restricted() if kind == "restricted" else None,
                    num_top=2 if kind == "scored" else None,
                )
            )  # fmt: skip
        slots = [*waiting]
        batch = Batch(model, cache, batch_size, prompt_tokens=prompt_tokens)
        with row_attention(model, cache):
            while waiting or batch.slots:
                while waiting and batch.num_free:
                    batch.join(waiting.pop(0))
                for slot in batch.step():
                    assert slot.num_cached == len(slot.ids) - 1
                for slot in [*batch.slots]:
                    if slot.is_finished or draw.random() < 0.1:
                        batch.leave(slot)
                        waiting += [] if slot.is_finished else [slot]
        return [slot.completion for slot in slots]

    virtual, rows = virtual_tokens_of(model), batch_size + num_kept
    assert completions(SlotCache(rows, virtual)) == completions(RowCache(rows, virtual))


def test_adapters_of_one_batch_keep_to_their_sequences() -> None:
    model, router = copy.deepcopy(MODELS["chatglm"]), Router()
    torch.manual_seed(0)
    for name, module in list(model.named_modules()):
        if name.endswith("query_key_value"):
            layer = RoutedLora(module, router)
            for adapter in ("x", "y"):
                layer.add(adapter, torch.randn(2, 32), torch.randn(module.out_features, 2), 0.5)
            model.set_submodule(name, layer)

    def assign(slots: Sequence[Slot], lengths: Sequence[int]) -> None:
        router.assign([slot.group for slot in slots], lengths, "cpu")

    def completions(cache: RowCache, names: list[str]) -> list[list[int]]:
        batch = Batch(model, cache, 3, before_step=assign)
        prompts = zip(prompts_of([5, 3, 9, 5, 2, 8]), (4, 9, 12, 7, 3, 8), names, strict=True)
        slots = [Slot(Request(ids, limit), GREEDY, (), group=name) for ids, limit, name in prompts]
        waiting = [*slots]
        with row_attention(model, cache):
            while waiting or batch.slots:
                while waiting and batch.num_free:
                    batch.join(waiting.pop(0))
                batch.step()
                router.assign(["y"], [1], "cpu")  # as for an embedding between two steps
                for slot in [*batch.slots]:
                    if slot.is_finished:
                        batch.leave(slot)
        return [slot.completion for slot in slots]

    names = ["x", "", "y", "y", "", "x"]
    found = completions(SlotCache(4), names)

    assert found == completions(RowCache(4), names)
    assert found != completions(RowCache(4), [""] * 6)


def test_a_long_sequence_outgrows_its_slot() -> None:
    model = MODELS["chatglm"]
    requests = [
        Request(ids, limit) for ids, limit in zip(prompts_of([3, 40]), (20, 30), strict=True)
    ]
    room, generating_room = ROOM, 40

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmtune.kernels.slot_cache.ROOM", generating_room)
        cache = slots_for(model, 2)
        found = written(model, requests, cache)

    assert found == written(model, requests, RowCache(2))
    assert generating_room < cache.room < room


def test_the_host_is_told_of_a_token_while_the_next_one_is_computed() -> None:
    model, calls = copy.deepcopy(MODELS["chatglm"]), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    cache = slots_for(model, 2)
    steps = generate_stepwise(
        model, [Request(ids, 6) for ids in prompts_of([4, 5])], cache, stop_ids=(), sampling=GREEDY
    )
    seen = []
    for completion, _ in steps:
        seen.append((len(completion.ids), len(calls)))

    first_of_both = seen[::2]
    # The prompt; then the second token is read when two steps have been started, and so on. After
    # the last token, which the limit foretells, none is started.
    assert first_of_both == [(1, 1), (2, 3), (3, 4), (4, 5), (5, 6), (6, 6)]


def filled(model: Any, num_rows: int) -> SlotCache:
    """A cache in which each row has a prompt of three tokens."""
    cache = slots_for(model, num_rows)
    ids = torch.tensor([[12, 13, 14] * num_rows], device=model.device)
    with torch.no_grad(), row_attention(model, cache):
        fed = cache.feed([0] * num_rows, [3] * num_rows, model.device)
        model(input_ids=ids, use_cache=True, **fed)
    return cache


def test_prompts_join_a_quarter_of_a_batch_at_a_time() -> None:
    """A step with prompts takes as long as several that are captured."""
    model = MODELS["chatglm"]
    limits = {"row cache": [], "slots": []}  # type: dict[str, list[int]]
    for name, cache in (("row cache", RowCache(8)), ("slots", SlotCache(8))):
        batch = Batch(model, cache)
        for index in range(8):
            if batch.wants_more:
                limits[name].append(batch.num_free)
            batch.slots.append(Slot(Request([1], 1), GREEDY, (), index))

    assert limits == {"row cache": [8, 7, 6, 5, 4, 3, 2, 1], "slots": [8, 7, 6, 5, 4, 3, 2]}


def test_sampled_answers_do_not_depend_on_the_other_rows() -> None:
    model = MODELS["chatglm"]
    sampling = Sampling(temperature=1.5, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=7)
    prompts = prompts_of([4, 4, 9, 2, 6])

    def drawn(num_rows: int) -> list[list[int]]:
        requests = [
            Request(ids, 12, sampling.generator(torch.device("cpu"), number))
            for number, ids in enumerate(prompts)
        ]
        return written(model, requests, slots_for(model, num_rows), sampling)

    assert drawn(1) == drawn(2) == drawn(5)
    assert drawn(5) != written(model, [Request(ids, 12) for ids in prompts], slots_for(model, 5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are in no interpreter here")
def test_the_layers_of_chatglm_decode_by_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("glmtune.kernels.triton_decode", reason="triton is missing")
    model = MODELS["chatglm with prefix"]
    requests = [Request(ids, limit) for ids, limit in zip(prompts_of([4, 7]), (3, 5), strict=True)]
    expected = written(model, requests, RowCache(2, virtual_tokens_of(model)))
    calls = []

    def note(*given: Any) -> Tensor:
        calls.append(1)
        output: Tensor = kernels.rotate_store_attend(*given)
        return output

    chosen = SimpleNamespace(rotate_store_attend=note)
    monkeypatch.setattr(slot_cache, "decode_kernels", lambda *_: chosen)

    assert written(model, requests, slots_for(model, 2)) == expected
    assert len(calls) >= 2 * 2  # of two layers


class TensorsOfTheHost(TorchDispatchMode):
    """Notes operations on tensors of the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        leaves = tree_flatten((args, kwargs, result))[0]
        if any(isinstance(each, Tensor) and each.device.type == "cpu" for each in leaves):
            self.operations.append(str(operation))
        return result


@pytest.mark.parametrize("family", ["chatglm", "llama", "sliding window"])
@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(temperature=0.7, top_k=5, presence_penalty=0.5)]
)
def test_a_decode_step_never_waits_for_the_device(family: str, sampling: Sampling) -> None:
    """On `meta` nothing can be read, and a copy from the host could not be captured."""
    model = copy.deepcopy(MODELS[family]).bfloat16().to("meta")
    cache = filled(model, 3)
    generator = torch.Generator().manual_seed(0)
    row = SampledRow(sampling, UniformNumbers(generator), [12, 13, 14], [14])
    with torch.no_grad(), row_attention(model, cache):
        cache.begin(model, [14] * 3, [3] * 3, 5)
        sampler = RowSampler([row] * 3, model.device)
        sampler.sample(torch.zeros(3, VOCAB, device="meta"))  # counts what penalties need
        with TensorsOfTheHost() as seen:
            for _ in range(3):
                scores = cache.decode(model).float()
                cache.advance(sampler.sample(scores))

    assert seen.operations == []
    assert scores.device.type == "meta"
    assert scores.shape == (3, VOCAB)
    with pytest.raises((RuntimeError, NotImplementedError)):
        scores.sum().item()  # or this test would not see a wait


def test_other_models_and_devices_take_the_row_cache() -> None:
    assert not supports_slot_cache(MODELS["chatglm"])  # on a CPU
    assert type(generating.make_cache(MODELS["chatglm"], 2)) is RowCache


def test_a_graph_is_forgotten_when_weights_move_or_an_adapter_changes() -> None:
    model = copy.deepcopy(MODELS["chatglm"])
    tuned = method.attach(model, LoraSection(r=2)).eval()
    cache = filled(tuned, 1)
    forgotten: list[int] = []
    cache._calls.clear = lambda: forgotten.append(1)  # type: ignore[method-assign]

    def is_forgotten() -> bool:
        forgotten.clear()
        cache.begin(tuned, [14], [3], 1)
        return bool(forgotten)

    assert is_forgotten()  # the first time, there is none
    assert not is_forgotten()
    cache.look_at(tuned)
    assert not forgotten
    with torch.no_grad():
        model.transformer.output_layer.weight.mul_(2.0)
    assert not is_forgotten()  # a graph reads what the weights are now
    with tuned.disable_adapter():
        assert is_forgotten()
    assert is_forgotten()
    tuned.merge_adapter()
    assert is_forgotten()
    weight = model.transformer.output_layer.weight
    weight.data = weight.data.clone()
    assert is_forgotten()
    assert not is_forgotten()
    tuned.unmerge_adapter()
    assert is_forgotten()
    cache.look_at(tuned.unload())  # other modules, of the same weights
    assert forgotten


def test_the_next_call_continues_with_the_graphs_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generating, "supports_slot_cache", lambda model: True)
    model, taken = copy.deepcopy(MODELS["chatglm"]), []

    def answer(num_rows: int) -> list[list[int]]:
        requests = [Request(ids, 8) for ids in prompts_of([4, 9, 2])]
        answers = generating.generate(
            model, requests, stop_ids=STOPS, sampling=GREEDY, batch_size=num_rows
        )
        done = {each.index: each.ids for each in answers}
        taken.append(generating._kept.get(model))
        return [done[index] for index in range(3)]

    assert answer(2) == answer(2) == answer(3)
    model.train()
    answer(3)

    assert taken[0] is taken[1]
    assert taken[2] is not taken[1]  # for another number of rows
    assert taken[3] is None  # in training the memory is for other things
