"""The next packs are made meanwhile, and all else is as if they were made when asked for."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from glmtune.data.batches import BatchPlan
from glmtune.train import loop
from glmtune.train.ahead import one_ahead


def test_the_next_item_is_made_while_one_is_used() -> None:
    made = {number: threading.Event() for number in range(4)}

    def items() -> Iterator[int]:
        for number, event in made.items():
            event.set()
            yield number

    seen = []
    for number in one_ahead(items()):
        seen.append(number)
        if number + 1 in made:
            assert made[number + 1].wait(10)
        assert number + 2 not in made or not made[number + 2].is_set()

    assert seen == [0, 1, 2, 3]


def test_an_error_comes_when_its_item_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    given = one_ahead(items())
    assert next(given) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(given)


def test_a_loop_that_is_left_leaves_no_thread() -> None:
    given = one_ahead(iter(range(100)))
    next(given)
    given.close()  # type: ignore[attr-defined]

    assert not [each for each in threading.enumerate() if each.name.startswith("packs")]


@pytest.mark.parametrize(
    ("device", "plan", "is_ahead"),
    [
        ("cuda", BatchPlan([0], 1, 8, 0), True),
        ("cpu", BatchPlan([0], 1, 8, 0), False),  # they would share its cores
        ("cuda", object(), False),  # rows that are not known beforehand
    ],
)
def test_packs_of_known_rows_are_made_ahead_for_an_accelerator(
    device: str, plan: Any, is_ahead: bool
) -> None:
    assert loop.may_be_ahead(plan, torch.device(device)) is is_ahead
