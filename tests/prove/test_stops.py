"""Answers end by themselves: the proof counts those that do, and fails a model that never stops."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmtune.model.load import load_model
from glmtune.prove.answers import Prompt, answer_all
from glmtune.prove.proof import STOPS, Proof
from glmtune.prove.stops import StopRate, count_ended
from glmtune.template.base import Template


def stop_rate(
    model: Any, template: Template, prompts: Sequence[Prompt], max_new_tokens: int
) -> StopRate:
    """Answer prompts, and count the answers that end by themselves."""
    answers = answer_all(model, template, prompts, max_new_tokens)
    return count_ended(answers, max_new_tokens)


def test_an_answer_that_runs_into_the_limit_counts_as_endless(
    taught: Any, template: Template, prompts: Sequence[Prompt]
) -> None:
    [whole] = answer_all(taught, template, prompts[1:], max_new_tokens=60)

    rate = stop_rate(taught, template, prompts, max_new_tokens=whole.num_tokens)
    one_more = stop_rate(taught, template, prompts[1:], max_new_tokens=whole.num_tokens + 1)

    assert 1 in rate.endless
    assert one_more.endless == ()  # the token that ends the answer had room


def test_a_model_that_never_learned_to_stop_fails_the_proof(
    tiny_model_dir: Path, template: Template, prompts: Sequence[Prompt]
) -> None:
    rate = stop_rate(load_model(str(tiny_model_dir)), template, prompts, max_new_tokens=12)

    proof = rate.proof(min_share=0.9)

    assert proof.verdict == "failed"
    assert "0 of 2 held-out prompts" in proof.detail
    assert "expected 90%" in proof.detail


def test_the_verdict_depends_on_the_share_that_is_asked_for() -> None:
    half = StopRate(4, (0, 3), 10)

    assert half.share == 0.5
    assert half.proof(0.5).verdict == "passed"
    assert half.proof(0.6).verdict == "failed"


def test_without_held_out_rows_the_proof_is_not_run_rather_than_passed(
    taught: Any, template: Template
) -> None:
    rate = stop_rate(taught, template, [], max_new_tokens=5)

    assert rate.proof(0.0) == Proof(STOPS, "not run", "There are no held-out rows to ask.")
