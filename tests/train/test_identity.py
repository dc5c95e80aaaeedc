"""A checkpoint belongs to a run: by what decides the weights, item by item."""

from pathlib import Path

import pytest

from glmtune.errors import CheckpointError
from glmtune.train.checkpoint import TrainerState
from glmtune.train.identity import check_identity, recorded

IDENTITY = {"recipe": ("a",), "training data": ("now", "as an earlier release hashed it")}
FOLDER = Path("checkpoint-4")


@pytest.mark.parametrize("value", IDENTITY["training data"])
def test_a_checkpoint_resumes_with_a_value_that_an_earlier_release_recorded(value: str) -> None:
    check_identity(TrainerState(identity={"recipe": "a", "training data": value}), IDENTITY, FOLDER)


def test_a_new_checkpoint_records_the_first_value() -> None:
    assert recorded(IDENTITY) == {"recipe": "a", "training data": "now"}


def test_everything_that_changed_is_named_with_both_values() -> None:
    state = TrainerState(identity={"training data": "other rows"})

    with pytest.raises(CheckpointError) as caught:
        check_identity(state, IDENTITY, FOLDER)

    assert "recipe (was nothing, now a); training data (was other rows, now now)" in str(
        caught.value
    )
