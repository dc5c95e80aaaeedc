"""Proof that what was written answers as what it was made from.

    source   adapter on its base, as chat opens it    -> prompt ids, greedy answers, logits
             merged by peft and rounded in memory     -> the logits that the result must have
    result   opened again from its folder             -> the same prompts and answers, scored

The result in ChatGLM's layout is opened by our classes. In glm's layout it is opened by
transformers and peft alone, in a fresh process that never imports glmtune, and so is the tokenizer
of every folder.

Two orders of the same float32 sums differ by rounding. Weights that are rounded to half precision
lose a part of the update: that is compared with what the adapter changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from glmtune.model.load import load_tokenizer
from glmtune.template.select import template_for
from glmtune.use.export.job import Job
from glmtune.use.export.probes import Probe, Reference, open_model, prompts_of, score
from glmtune.use.export.stock import TOKENIZER, StockAnswer, ask_stock

FLOAT32_TOLERANCE = 1e-5  # of a logit, or of the largest logit if that is above 1
HALF_TOLERANCE = 0.1  # in half-precision arithmetic, of the spread of a token's logits
MOST_LOST = 0.5  # of what the adapter changes, by rounding
PROMPTS, STOCK_PROMPTS, LOGITS, ROUNDING, GREEDY = (
    "prompts are the same ids",
    "stock transformers builds the same prompts",
    "logits are the same",
    "rounded weights keep what the adapter changes",
    "greedy answers are the same",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of source and result, and its outcome.

    Attributes:
        name: the statement.
        verdict: "not run" for a check that had nothing to check; never "passed" then.
        detail: what was measured.
    """

    name: str
    verdict: Literal["passed", "failed", "not run"]
    detail: str


def check_ours(job: Job, folder: Path, reference: Reference) -> list[Check]:
    """Open a folder in ChatGLM's layout with our classes, an adapter over its base, and compare."""
    is_model = (folder / "config.json").is_file()
    model = open_model(
        str(folder if is_model else job.base), None if is_model else folder, reference.dtype
    )
    found = [score(model, probe.ids) for probe in reference.probes]
    del model
    chats = [probe.messages for probe in shared_probes(job, reference)]
    answer = ask_stock(tokenizer=folder, chats=chats)
    return [
        _same_prompts(job, folder, reference),
        _stock_prompts(job, reference, answer),
        *compare(reference, found),
    ]


def check_stock(
    job: Job, model: Path, reference: Reference, adapter: Path | None = None
) -> list[Check]:
    """Open a folder in glm's layout, and an adapter over it, with transformers and peft alone."""
    folder = adapter or model
    answer = ask_stock(
        tokenizer=folder,
        chats=[probe.messages for probe in shared_probes(job, reference)],
        model=model,
        adapter=adapter,
        dtype=reference.dtype,
        ids=[probe.ids for probe in reference.probes],
    )
    return [_stock_prompts(job, reference, answer), *compare(reference, answer.logits)]


def compare(reference: Reference, found: Sequence[Tensor]) -> list[Check]:
    """Compare logits, and the token that is the likeliest at each place of the greedy answers.

    Args:
        reference: of the source.
        found: logits of the result for each probe, (seq, vocab).
    """
    probes = reference.probes
    difference = _largest(
        [each - probe.expected for each, probe in zip(found, probes, strict=True)]
    )
    if reference.is_exact:
        scale = max(1.0, _largest([probe.expected for probe in probes]))
        tolerance, why = FLOAT32_TOLERANCE * scale, "the order of float32 sums"
    else:
        spread = max(probe.expected.std(-1).max().item() for probe in probes)
        tolerance, why = HALF_TOLERANCE * spread, f"{reference.dtype} arithmetic"
        if reference.is_merged:
            changed = _largest([probe.tuned - probe.base for probe in probes])  # type: ignore[operator]
            tolerance += MOST_LOST * changed
            why += f", and {MOST_LOST:.0%} of the {changed:.2g} that the adapter changes"
    logits = Check(
        LOGITS,
        "passed" if difference <= tolerance else "failed",  # NaN fails
        f"they differ by {difference:.2g} at most (tolerance {tolerance:.2g}: {why})",
    )
    rounding = _largest([probe.expected - probe.tuned for probe in probes])
    return [
        logits,
        *_kept_by_rounding(reference, rounding, tolerance),
        _same_answers(reference, found, tolerance + rounding),
    ]


def _largest(tensors: Sequence[Tensor]) -> float:
    return max(each.abs().max().item() for each in tensors)


def _kept_by_rounding(reference: Reference, rounding: float, tolerance: float) -> list[Check]:
    """Compare what rounding changes with what the adapter changes; nothing if there is neither."""
    changes = [probe.tuned - probe.base for probe in reference.probes if probe.base is not None]
    if not changes or rounding <= tolerance:
        return []
    errors = [probe.expected - probe.tuned for probe in reference.probes]
    lost = _norm(errors) / max(_norm(changes), 1e-30)
    return [
        Check(
            ROUNDING,
            "passed" if lost <= MOST_LOST else "failed",
            f"{lost:.1%} of it is lost (at most {MOST_LOST:.0%})"
            + ("" if lost <= MOST_LOST else ": use --dtype float32, or keep the adapter separate"),
        )
    ]


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(each.square().sum().item() for each in tensors))


def _same_answers(reference: Reference, found: Sequence[Tensor], tolerance: float) -> Check:
    """Compare the likeliest tokens; two that are as likely within the tolerance are a tie."""
    num_tokens = num_ties = num_others = 0
    for probe, each in zip(reference.probes, found, strict=True):
        start = len(probe.prompt) - 1
        tuned, seen = probe.tuned[start:-1], each[start:-1]  # (answer, vocab)
        best, chosen = tuned.argmax(-1, keepdim=True), seen.argmax(-1, keepdim=True)
        gap = tuned.gather(-1, best) - tuned.gather(-1, chosen)
        num_tokens += len(best)
        num_ties += int(((best != chosen) & (gap <= 2 * tolerance)).sum())
        num_others += int(((best != chosen) & ~(gap <= 2 * tolerance)).sum())
    detail = f"{num_tokens - num_ties - num_others} of {num_tokens} tokens"
    if num_ties:
        detail += f", and {num_ties} that rounding decides"
    return Check(GREEDY, "failed" if num_others else "passed", detail)


def _same_prompts(job: Job, folder: Path, reference: Reference) -> Check:
    """Read the tokenizer of the folder with our classes, and build the prompts again."""
    template = template_for(load_tokenizer(folder), job.layout)
    again = [ids for _, ids in prompts_of(template)]
    expected = [probe.prompt for probe in reference.probes]
    is_same = again == expected and template.fingerprint == job.template.fingerprint
    return Check(
        PROMPTS,
        "passed" if is_same else "failed",
        f"{len(expected)} prompts, {sum(map(len, expected))} tokens, and the fingerprint",
    )


def _stock_prompts(job: Job, reference: Reference, answer: StockAnswer) -> Check:
    """Compare the prompts that transformers built with ours."""
    if job.template.description.get("family") == "chat-template":
        return Check(STOCK_PROMPTS, "not run", "the tokenizer is transformers' own")
    probes = shared_probes(job, reference)
    if not probes:
        return Check(STOCK_PROMPTS, "not run", "this layout of prompts has no chat template")
    if answer.prompts is None:
        return Check(STOCK_PROMPTS, "not run", f"the folder has no {TOKENIZER}")
    expected = [probe.prompt for probe in probes]
    num_same = sum(a == b for a, b in zip(answer.prompts, expected, strict=True))
    return Check(
        STOCK_PROMPTS,
        "passed" if num_same == len(expected) else "failed",
        f"{num_same} of {len(expected)} by transformers {answer.version} without glmtune",
    )


def shared_probes(job: Job, reference: Reference) -> list[Probe]:
    """Return the probes of a layout that has a chat template."""
    has_template = job.template.description.get("layout") in ("official", "tutorial")
    return list(reference.probes) if has_template else []
