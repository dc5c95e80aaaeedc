from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.padding import pad_examples

from glmtune.data.batches import BatchPlan, batches, pack_examples
from glmtune.template.base import IGNORE, Example

A = Example([11, 12, 13], [IGNORE, 12, 13])
B = Example([21, 22], [21, 22])


def test_a_pack_becomes_one_row_that_records_where_its_examples_meet() -> None:
    micro_batch = pack_examples([B, A, B], rows=[1, 2])

    assert micro_batch.input_ids.tolist() == [[11, 12, 13, 21, 22]]
    assert micro_batch.labels.tolist() == [[IGNORE, 12, 13, IGNORE, 22]]
    assert micro_batch.position_ids is not None
    assert micro_batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert micro_batch.rows == (1, 2)
    inputs = micro_batch.inputs()
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert inputs["max_length_q"] == 3
    assert "attention_mask" not in inputs


def test_padding_is_on_the_right_and_never_learned() -> None:
    micro_batch = pad_examples([A, B], pad_id=7)

    assert micro_batch.input_ids.tolist() == [[11, 12, 13], [21, 22, 7]]
    assert micro_batch.labels.tolist() == [[IGNORE, 12, 13], [21, 22, IGNORE]]
    assert list(micro_batch.inputs()) == ["input_ids"]  # a causal model needs no mask here


@given(
    num_rows=st.integers(1, 40),
    rows_per_step=st.integers(1, 16),
    max_tokens=st.integers(1, 40),
    processes=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_each_epoch_learns_each_row_once_over_all_processes(
    num_rows: int, rows_per_step: int, max_tokens: int, processes: int, seed: int
) -> None:
    lengths = [(row * 7) % 13 + 1 for row in range(num_rows)]
    plans = [
        BatchPlan(range(num_rows), rows_per_step, max_tokens, seed, rank, processes)
        for rank in range(processes)
    ]
    steps = plans[0].steps_per_epoch
    for epoch in range(2):
        seen = [
            row
            for plan in plans
            for step in range(epoch * steps, (epoch + 1) * steps)
            for rows in plan.micro_batch_rows(step, lengths)
            for row in rows
        ]
        assert sorted(seen) == list(range(num_rows))


def test_each_epoch_samples_general_rows_again_and_shuffles_them_among_the_others() -> None:
    plans = [
        BatchPlan(range(20), 8, 100, 0, rank, 2, replay=range(20, 60), num_replayed=10)
        for rank in range(2)
    ]
    one = BatchPlan(range(20), 8, 100, 0, replay=range(20, 60), num_replayed=10)
    assert one.steps_per_epoch == 4  # 30 rows

    drawn = []
    for epoch in range(2):
        steps = range(4 * epoch, 4 * epoch + 4)
        rows = [row for step in steps for row in one.step_rows(step)]
        assert sorted(row for row in rows if row < 20) == list(range(20))
        drawn.append({row for row in rows if row >= 20})
        assert sum(map(one.count_replayed, steps)) == len(drawn[-1]) == 10
        assert max(one.count_replayed(step) for step in steps) < 8  # not all in one step
        shared = [[*chain(*plan.micro_batch_rows(4 * epoch, [9] * 60))] for plan in plans]
        assert sorted(chain(*shared)) == sorted(one.step_rows(4 * epoch))
    assert drawn[0] != drawn[1]


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = BatchPlan(range(50), 10, 100, seed)
        return [row for step in range(epoch * 5, epoch * 5 + 5) for row in plan.step_rows(step)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_how_rows_are_packed_does_not_change_which_rows_a_step_learns() -> None:
    lengths = [3, 90, 4, 80, 5, 70, 6, 60]
    small, large = (BatchPlan(range(8), 4, tokens, seed=1) for tokens in (90, 200))

    for step in range(2):
        a, b = (plan.micro_batch_rows(step, lengths) for plan in (small, large))
        assert sorted(chain(*a)) == sorted(chain(*b))
    assert len(small.micro_batch_rows(0, lengths)) > len(large.micro_batch_rows(0, lengths))


def test_micro_batches_of_a_number_of_rows_are_those_of_a_trainer_that_pads() -> None:
    plan = BatchPlan(range(10), 8, max_tokens=100, seed=0, rows_per_micro_batch=3)
    first, second = (
        BatchPlan(range(10), 8, 100, 0, rank, 2, rows_per_micro_batch=3) for rank in (0, 1)
    )
    order, lengths = plan.step_rows(0), [1] * 10

    groups = [order[:3], order[3:6], order[6:]]

    assert plan.micro_batch_rows(0, lengths) == groups
    assert first.micro_batch_rows(0, lengths) == [groups[0], groups[2]]
    assert second.micro_batch_rows(0, lengths) == [groups[1], []]


def test_batches_start_where_a_run_stopped() -> None:
    examples = [A, B] * 6
    plan = BatchPlan(range(12), 4, 100, seed=3)
    lengths = [len(example.input_ids) for example in examples]

    whole = list(batches(examples, lengths, plan, 0, 6))
    rest = list(batches(examples, lengths, plan, 4, 6))

    assert [batch.rows for batch in rest] == [batch.rows for batch in whole[4:]]
    for one, other in zip(rest[0].micro_batches, whole[4].micro_batches, strict=True):
        torch.testing.assert_close(one.input_ids, other.input_ids)
