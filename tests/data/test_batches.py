import torch
from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.batches import BatchPlan, batches, collate
from glmtune.template import IGNORE, Example

A = Example([11, 12, 13], [IGNORE, 12, 13])
B = Example([21, 22], [IGNORE, 22])


def test_padding_is_on_the_right_and_never_learned() -> None:
    micro_batch = collate([A, B], pad_id=7, rows=[4, 9])

    assert micro_batch.input_ids.tolist() == [[11, 12, 13], [21, 22, 7]]
    assert micro_batch.labels.tolist() == [[IGNORE, 12, 13], [IGNORE, 22, IGNORE]]
    assert micro_batch.rows == (4, 9)
    assert list(micro_batch.inputs()) == ["input_ids"]  # a causal model needs no mask here


@given(
    num_rows=st.integers(1, 40),
    size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    processes=st.integers(1, 3),
    sort=st.booleans(),
    seed=st.integers(0, 5),
)
def test_each_epoch_learns_each_row_once_over_all_processes(
    num_rows: int, size: int, accumulation: int, processes: int, sort: bool, seed: int
) -> None:
    lengths = [(row * 7) % 13 + 1 for row in range(num_rows)]
    plans = [
        BatchPlan(range(num_rows), size, accumulation, seed, sort, rank, processes)
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


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = BatchPlan(range(50), 5, 2, seed)
        return [row for step in range(epoch * 5, epoch * 5 + 5) for row in plan.step_rows(step)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_sorting_within_a_step_changes_its_padding_and_not_its_rows() -> None:
    lengths = [3, 90, 4, 80, 5, 70, 6, 60]
    shuffled = BatchPlan(range(8), 2, 4, seed=1, sort_within_step=False)
    is_sorted = BatchPlan(range(8), 2, 4, seed=1, sort_within_step=True)

    def padded(plan: BatchPlan) -> int:
        groups = plan.micro_batch_rows(0, lengths)
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in groups)

    assert sorted(shuffled.step_rows(0)) == sorted(is_sorted.step_rows(0)) == list(range(8))
    assert padded(is_sorted) < padded(shuffled)


def test_batches_start_where_a_run_stopped() -> None:
    examples = [A, B] * 6
    plan = BatchPlan(range(12), 2, 2, seed=3)
    lengths = [len(example.input_ids) for example in examples]

    whole = list(batches(examples, lengths, plan, 0, 0, 6))
    rest = list(batches(examples, lengths, plan, 0, 4, 6))

    assert [batch.rows for batch in rest] == [batch.rows for batch in whole[4:]]
    for one, other in zip(rest[0].micro_batches, whole[4].micro_batches, strict=True):
        torch.testing.assert_close(one.input_ids, other.input_ids)
