"""What commands print: the verdict at the end of a run."""

import pytest

from glmtune.cli.printing import print_verdict
from glmtune.messages import VARIABLE
from glmtune.prove.proof import ALIVE, FORGETS, STOCK_READER, STOPS, Proof

PROOFS = (
    Proof(ALIVE, "passed", "28 of 28"),
    Proof(STOCK_READER, "not run", "checks.stock_reader is false"),
    Proof(STOPS, "failed", "There are no held-out rows to ask."),
    Proof(FORGETS, "passed"),
)


def test_what_failed_comes_first_with_what_to_do_then_the_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_verdict(PROOFS)

    assert capsys.readouterr().out.splitlines() == [
        "failed: answers end by themselves: There are no held-out rows to ask.",
        "4 proofs: 2 passed, 1 failed, 1 not run",
    ]


def test_the_verdict_is_chinese_for_readers_of_chinese(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "zh")

    print_verdict(PROOFS)

    assert capsys.readouterr().out.splitlines() == [
        "未通过：回答会自行结束：没有可以提问的留出行。",
        "4 项证明：2 通过，1 未通过，1 未运行",
    ]


def test_a_run_without_proofs_has_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(())

    assert capsys.readouterr().out == ""
