from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.packing import group_rows, pack
from glmtune.template.base import IGNORE, Example


def test_no_token_learns_to_predict_the_next_example() -> None:
    a = Example(input_ids=[11, 12, 13], labels=[11, 12, 13])
    b = Example(input_ids=[21, 22], labels=[21, 22])

    packed = pack([a, b])

    assert packed.input_ids == [11, 12, 13, 21, 22]
    assert packed.labels == [IGNORE, 12, 13, IGNORE, 22]
    assert packed.position_ids == [0, 1, 2, 0, 1]
    assert packed.lengths == [3, 2]


def test_the_longest_rows_come_first_and_short_ones_fill_the_room() -> None:
    assert group_rows(range(3), [3, 2, 4], max_tokens=6) == [[2, 1], [0]]


def test_a_row_longer_than_a_pack_gets_one_of_its_own() -> None:
    assert group_rows(range(3), [9, 2, 2], max_tokens=4) == [[0], [1, 2]]


@given(lengths=st.lists(st.integers(1, 50), max_size=60), max_tokens=st.integers(1, 80))
def test_every_row_is_in_one_pack_and_packs_are_well_filled(
    lengths: list[int], max_tokens: int
) -> None:
    groups = group_rows(range(len(lengths)), lengths, max_tokens)
    sizes = [sum(lengths[row] for row in rows) for rows in groups]

    assert sorted(chain(*groups)) == list(range(len(lengths)))
    assert all(
        size <= max_tokens or len(rows) == 1 for rows, size in zip(groups, sizes, strict=True)
    )
    # No two packs could have been one.
    assert sum(2 * size <= max_tokens for size in sizes) <= 1
