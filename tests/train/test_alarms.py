"""Warnings of a run that looks wrong: each given once, and none in a healthy run."""

from typing import Any

import pytest

from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.sections import ChecksSection
from glmtune.train.alarms import Alarms, find_disproportions
from glmtune.train.optimizer import count_warmup_steps


def recipe(*overrides: str) -> Recipe:
    tree = {
        "model": {"name_or_path": "m"},
        "data": {"train": "rows.json"},
        "output": {"dir": "out"},
    }
    return build_recipe(tree, overrides)


def healthy(alarms: Alarms, steps: int = 60) -> None:
    for step in range(1, steps + 1):
        alarms.step(step, 3.0 / step**0.3 + 0.3 * (step % 3), 1.0 + 0.5 * (step % 4))


def test_a_healthy_run_has_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(ChecksSection())
    healthy(alarms)
    for step, loss in enumerate([2.0, 1.8, 1.81, 1.7, 1.69]):
        alarms.evaluation(step, loss)

    assert caplog.text == ""
    assert find_disproportions(recipe(), num_rows=10_000, num_steps=313) == []


def test_an_exploding_gradient_is_named_with_its_step(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(ChecksSection())
    healthy(alarms)

    alarms.step(61, 0.9, 40.0)

    assert "step 61: the gradient exploded: its norm is 40" in caplog.text


def test_a_rising_loss_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(ChecksSection())
    healthy(alarms)

    for step in range(61, 90):
        alarms.step(step, 5.0, 1.0)

    assert caplog.text.count("the loss rises") == 1


def test_one_hard_step_is_no_rising_loss(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(ChecksSection())
    healthy(alarms)
    alarms.step(61, 4.0, 1.0)

    assert "the loss rises" not in caplog.text


def test_a_negligible_loss_may_fluctuate(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(ChecksSection())
    for step in range(1, 60):
        alarms.step(step, 0.007 if step < 40 else 0.011, 1.0)

    assert caplog.text == ""


def test_a_held_out_loss_that_turned_up_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(ChecksSection(worse_evaluations=2))
    for step, loss in enumerate([2.0, 1.5, 1.6, 1.7]):
        alarms.evaluation(100 * step, loss)

    assert "step 300: the held-out loss has turned up: 1.7000 after 1.5000" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "sizes", "complaint"),
    [
        (["learning_rate=0.05"], (10_000, 313), "diverges or forgets"),
        (["learning_rate=1e-8"], (10_000, 313), "barely learns"),
        (["learning_rate=1e-3", "adapter.method=full"], (10_000, 313), "1e-5 is a good start"),
        (["gradient_accumulation_steps=1"], (10_000, 5000), "a step learns from 2 rows"),
        (
            ["gradient_accumulation_steps=64"],
            (100, 15),
            "asks for 128 rows, but there are only 100",
        ),
        (["warmup_steps=313"], (10_000, 313), "never reaches 0.0001"),
        (["max_grad_norm=1e-12"], (10_000, 313), "max_grad_norm 1e-12 makes every gradient so"),
        (["adam_epsilon=0.5"], (10_000, 313), "adam_epsilon 0.5 outweighs usual gradients"),
        (["lora_alpha=1e-5"], (10_000, 313), "multiplies the update by 1.3e-06"),
        ([], (64, 2), "2 optimizer steps"),
        ([], (100, 400), "learned about 128 times"),
    ],
)
def test_what_is_out_of_proportion_is_warned_of_before_the_first_step(
    overrides: list[Any], sizes: tuple[int, int], complaint: str
) -> None:
    [warning] = find_disproportions(recipe(*overrides), *sizes)
    assert complaint in warning


def test_each_method_has_its_own_sane_learning_rates() -> None:
    adapter, weights = recipe("learning_rate=1e-3"), recipe("learning_rate=1e-5", "method=full")
    assert (
        find_disproportions(adapter, 10_000, 313) == find_disproportions(weights, 10_000, 313) == []
    )


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 12, 40, 1_000])
@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("accumulation", [1, 2, 16])
def test_advice_about_the_size_of_a_step_is_no_contradiction_and_ends(
    num_rows: int, batch: int, accumulation: int
) -> None:
    """Who lowers what is to be lowered, and raises what is to be raised, gets further."""
    seen = set()
    while (batch, accumulation) not in seen:
        seen.add((batch, accumulation))
        sizes = [
            f"per_device_train_batch_size={batch}",
            f"gradient_accumulation_steps={accumulation}",
        ]
        steps = 3 * -(-num_rows // (batch * accumulation))
        said = "; ".join(find_disproportions(recipe(*sizes), num_rows, steps))
        lower, higher = "lower gradient_accumulation_steps" in said, "raise gradient_acc" in said
        assert not (lower and higher)
        assert not (lower and accumulation == 1)
        if higher:
            accumulation = int(said.partition(") to ")[2].split()[0])
        elif lower:
            accumulation -= 1
        elif "lower per_device_train_batch_size" in said:
            assert batch > 1
            batch -= 1
        else:
            return
    raise AssertionError(f"the advice goes round in a circle: {sorted(seen)}")


@pytest.mark.parametrize(
    ("method", "rate"),  # of docs/methods.md
    [("vera", 0.02), ("oft", 0.003), ("ia3", 0.02), ("prompt_tuning", 0.03), ("p_tuning", 0.01),
     ("prefix_tuning", 0.1), ("ptuning_v2", 0.1), ("ptuning_v2", 0.02), ("qlora", 0.001)],
)  # fmt: skip
def test_the_learning_rates_that_the_docs_recommend_are_usual(method: str, rate: float) -> None:
    usual = recipe(f"adapter.method={method}", f"learning_rate={rate}")
    tenfold = recipe(f"adapter.method={method}", f"learning_rate={20 * rate}")

    assert find_disproportions(usual, 10_000, 313) == []
    assert "is unusual" in find_disproportions(tenfold, 10_000, 313)[0]


def test_an_equal_held_out_loss_has_not_turned_up(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(ChecksSection(worse_evaluations=2))
    for step, loss in enumerate([2.0, 2.0, 2.00001, 2.0, 2.0]):
        alarms.evaluation(100 * step, loss)

    assert caplog.text == ""


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 2), (0.07, 8), (3, 3), (0, 0)])
def test_a_share_of_the_steps_is_rounded_up_as_by_transformers(warmup: float, steps: int) -> None:
    from transformers import TrainingArguments

    expected = TrainingArguments(warmup_steps=warmup).get_warmup_steps(100 if warmup < 0.1 else 15)
    section = recipe(f"warmup_steps={warmup}").training

    assert count_warmup_steps(section, 100 if warmup < 0.1 else 15) == steps == expected
