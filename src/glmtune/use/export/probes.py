"""Prompts that an export is compared on, and what the source answers to them.

source -> prompt ids, greedy answers, logits of every position with and without the adapter
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.errors import TemplateError
from glmtune.machine import host_memory
from glmtune.methods import method
from glmtune.model.load import load_frozen_model
from glmtune.template.base import Template
from glmtune.tool_calls import render_tool_call
from glmtune.use.export.job import Job
from glmtune.use.export.merge import merge_in_place
from glmtune.use.export.weights import Weights
from glmtune.use.generate import Request, Sampling, generate

ANSWER_TOKENS = 12
FLOAT32_SHARE = 0.4  # of the memory that is available; a larger model is compared in its own dtype
SPELLINGS = "<|user|> sop [gMASK]sop <|assistant|>\n</s> <|system|>eop sophisticated people [MASK]"
_TOOL = {
    "name": "track",
    "description": "追踪股票的实时价格",
    "parameters": {"symbol": {"description": "股票代码", "type": "string"}},
}
PROBES = (
    Conversation((Message("user", "你好"),)),
    Conversation((Message("user", f"What does {SPELLINGS} mean? \u3000\t😀\n\n  1 + 1 ="),)),
    Conversation(
        (
            Message("system", TOOLS_PROMPT, tools=[_TOOL]),
            Message("user", "10111 的股价是多少？"),
            Message("assistant", render_tool_call({"symbol": "10111"}), metadata="track"),
            Message("observation", '{"price": 12412, "note": "<|observation|>"}'),
        )
    ),
    Conversation(
        (
            Message("system", "Answer in one word. <|user|>"),
            Message("user", "北京"),
            Message("assistant", "中国 sop"),
            Message("user", ""),
        )
    ),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt and what the source makes of it.

    Attributes:
        messages: of the conversation.
        prompt: its ids.
        answer: greedy ids.
        tuned: logits of every position of prompt and answer, (seq, vocab), float32.
        base: those without the adapter; None for a complete model.
        expected: those that the result must have: of the adapter merged by peft in memory, and of
            weights in the dtype that was written. For a model that does not fit into memory in
            float32 they are `tuned`.
    """

    messages: tuple[Message, ...]
    prompt: list[int]
    answer: list[int]
    tuned: Tensor
    base: Tensor | None
    expected: Tensor

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt, *self.answer]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the source answers.

    Attributes:
        probes: prompts and answers.
        dtype: by torch's name, in which source and result are compared.
        is_merged: whether an adapter was merged into the weights.
    """

    probes: Sequence[Probe]
    dtype: str
    is_merged: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the arithmetic is float32, so that differences are those of the weights."""
        return self.dtype == "float32"


def prompts_of(template: Template) -> list[tuple[tuple[Message, ...], list[int]]]:
    """Encode the conversations that a layout can hold; gives messages and ids."""
    prompts = []
    for conversation in PROBES:
        try:
            ids = template.prompt_ids(conversation)
        except TemplateError:  # a layout without roles or tools
            continue
        prompts.append((conversation.messages, ids))
    return prompts


def open_model(folder: str, adapter: Any, dtype: str) -> Any:
    """Load a model, and an adapter over it, on the CPU."""
    model = load_frozen_model(folder, dtype=dtype, device=torch.device("cpu"))
    return model if adapter is None else method.load(model, adapter).eval()


def choose_dtype(weights: Weights) -> str:
    """Choose float32 if the model fits into memory so, else the dtype of its weights."""
    num_bytes = 4 * sum(stored.numel for stored in weights.stored.values())
    return "float32" if num_bytes < FLOAT32_SHARE * host_memory().available_bytes else "auto"


def reference_of(job: Job, *, is_merged: bool, dtype: torch.dtype | None) -> Reference:
    """Answer the probes with the source: the model, or the adapter on its base.

    Args:
        job: what was exported.
        is_merged: whether the adapter was merged into the weights.
        dtype: of the written weights; None if no weight was written.
    """
    arithmetic = choose_dtype(Weights(job.base))
    model = open_model(str(job.base), job.adapter, arithmetic)
    prompts = prompts_of(job.template)
    requests = [Request(ids, ANSWER_TOKENS) for _, ids in prompts]
    stops, greedy = job.template.stop_ids, Sampling(temperature=0)
    answers = {
        each.index: each.ids for each in generate(model, requests, stop_ids=stops, sampling=greedy)
    }
    rows = [[*ids, *answers[index]] for index, (_, ids) in enumerate(prompts)]
    tuned = [score(model, row) for row in rows]
    bases: list[Tensor | None] = [None] * len(rows)
    if job.adapter is not None:
        with model.disable_adapter():
            bases = [score(model, row) for row in rows]
    expected = tuned
    if arithmetic == "float32" and dtype is not None:  # a large model has no room for a second one
        if is_merged and job.adapter is not None:
            merge_in_place(model)
        _round(model, dtype)
        expected = [score(model, row) for row in rows]
    probes = [
        Probe(messages, ids, answers[index], tuned[index], bases[index], expected[index])
        for index, (messages, ids) in enumerate(prompts)
    ]
    if arithmetic == "auto":
        arithmetic = str(model.dtype).removeprefix("torch.")
    return Reference(probes, arithmetic, is_merged and job.adapter is not None)


def _round(model: Any, dtype: torch.dtype) -> None:
    """Round weights to a dtype of fewer bits, and keep the dtype of the arithmetic."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > dtype.itemsize:
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)


@torch.no_grad()
def score(model: Any, ids: Sequence[int]) -> Tensor:
    """Score every position in one pass without a cache: (seq, vocab), float32."""
    logits: Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0].float()
