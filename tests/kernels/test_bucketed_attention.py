import torch
from hypothesis import given, settings
from tests.kernels.attention_cases import Case, cases

from glmtune.kernels.bucketed_attention import attend_by_buckets
from glmtune.kernels.pack_layout import PackLayout


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_buckets_give_what_the_examples_give_one_by_one(case: Case) -> None:
    output = attend_by_buckets(*case.qkv, case.layout, scaling=0.3, virtual=case.virtual)

    case.check(output)


def test_examples_of_a_bucket_differ_by_less_than_a_factor_of_two() -> None:
    buckets, places = PackLayout([5, 3, 7, 4, 1, 8, 9]).buckets(torch.device("cpu"))

    assert [tuple(bucket.rows.shape) for bucket in buckets] == [(3, 8), (2, 4), (1, 1), (1, 9)]
    assert buckets[0].rows[0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    flat = torch.cat([bucket.rows.flatten() for bucket in buckets])
    assert flat[places].tolist() == list(range(37))


def test_a_pack_takes_one_call_per_power_of_two_however_many_examples_it_has() -> None:
    buckets, _ = PackLayout(list(range(1, 301))).buckets(torch.device("cpu"))

    assert len(buckets) == 10
