"""A large model is trained in fewer bits where the machine has less memory than it takes."""

import pytest

from glmtune import machine
from glmtune.machine import Gpu, HostMemory
from glmtune.train.plan import suggest
from glmtune.units import GIB

CHATGLM3 = 6_243_584_000  # numbers


def choices(monkeypatch: pytest.MonkeyPatch, *, gpu: int, host: int) -> dict[str, object]:
    """Choose for a machine with these free GiB."""
    gpus = (Gpu("card", gpu * GIB, gpu * GIB, has_bfloat16=True),) if gpu else ()
    monkeypatch.setattr(machine, "gpus", lambda: gpus)
    monkeypatch.setattr(machine, "host_memory", lambda: HostMemory(host * GIB, host * GIB))
    return {each.key: each.value for each in suggest.of_weights(CHATGLM3, use_cpu=False)}


def test_the_weights_stay_whole_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choices(monkeypatch, gpu=24, host=8) == {}
    assert choices(monkeypatch, gpu=0, host=32) == {}


def test_a_small_card_takes_four_bits_and_a_small_computer_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choices(monkeypatch, gpu=12, host=64) == {"adapter.method": "qlora"}
    assert choices(monkeypatch, gpu=0, host=14) == {"model.compute": "int8"}


@pytest.mark.parametrize(
    ("number", "held_out", "epochs", "batch"),
    [(3, 0, 5, 4), (39, 0, 5, 4), (40, 8, 5, 4), (1_000, 50, 3, 32), (50_000, 500, 1, 32)],
)
def test_more_rows_take_fewer_epochs_and_larger_steps(
    number: int, held_out: int, epochs: int, batch: int
) -> None:
    chosen = {each.key: each.value for each in suggest.of_rows([100] * number, 8192)}

    assert chosen["data.eval_fraction"] == held_out
    assert chosen["training.num_train_epochs"] == epochs
    packs, rows = "gradient_accumulation_steps", "per_device_train_batch_size"
    assert chosen[f"training.{packs}"] * chosen[f"training.{rows}"] == batch


def test_rows_are_as_long_as_the_model_allows() -> None:
    short = {each.key: each.value for each in suggest.of_rows([9] * 99 + [6000], 256)}
    long = {each.key: each.value for each in suggest.of_rows([6000] * 99, 256)}

    assert (short["data.max_length"], long["data.max_length"]) == (128, 256)
