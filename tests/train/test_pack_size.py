"""The longest packs that fit are found by what one of them takes."""

from dataclasses import dataclass, field

import pytest

from glmtune.train.pack_size import choose_tokens

MIB = 2**20


@dataclass
class Gpu:
    """A GPU on which a pack takes a fixed amount, and so much a token."""

    free: int
    fixed: int = 0
    per_token: int = MIB
    surprise: int = 0  # that long packs take besides
    tried: list[int] = field(default_factory=list)
    recomputes: bool = False

    def taken(self, tokens: int) -> int | None:
        self.tried.append(tokens)
        per_token = self.per_token // 8 if self.recomputes else self.per_token
        needs = self.fixed + per_token * tokens + (self.surprise if tokens > 1024 else 0)
        return needs if needs <= self.free else None

    def recompute(self) -> None:
        self.recomputes = True

    def choose(self, least: int, most: int) -> int:
        return choose_tokens(
            least,
            most,
            free_bytes=lambda: self.free,
            bytes_taken=self.taken,
            recompute=self.recompute,
        )


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        (100_000 * MIB, 7000),  # all rows of the step and no more
        (4000 * MIB, 3328),  # 0.85 of it
        (600 * MIB, 512),
    ],
)
def test_packs_are_as_long_as_the_memory_holds_and_the_step_needs(free: int, chosen: int) -> None:
    gpu = Gpu(free)

    assert gpu.choose(512, 7000) == chosen
    assert not gpu.recomputes


def test_what_does_not_fit_is_halved_and_nothing_is_recomputed_for_it() -> None:
    gpu = Gpu(4000 * MIB, surprise=3000 * MIB)

    assert gpu.choose(512, 7000) == 768
    assert gpu.tried == [512, 3328, 1536, 768]
    assert not gpu.recomputes


def test_activations_are_recomputed_only_where_the_least_does_not_fit() -> None:
    gpu = Gpu(400 * MIB)

    assert gpu.choose(512, 7000) == 2560
    assert gpu.recomputes


def test_what_fits_in_no_way_is_left_to_the_dry_run() -> None:
    assert Gpu(free=10).choose(512, 7000) == 512


def test_a_recorded_length_is_kept() -> None:
    gpu = Gpu(100_000 * MIB)

    assert gpu.choose(3328, 3328) == 3328
    assert gpu.tried == [3328]
