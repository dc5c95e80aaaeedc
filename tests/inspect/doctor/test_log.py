"""A log is diagnosed: the root cause first, and nothing in a healthy log."""

import time
from pathlib import Path

import pytest

from glmtune.errors import DataError
from glmtune.inspect.doctor import log as doctor_log
from glmtune.inspect.doctor.log import diagnose, last_error_line, read_log
from glmtune.inspect.doctor.patterns import split_alternatives
from glmtune.inspect.doctor.symptoms import SYMPTOMS

ELASTIC = """\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
"""


def test_the_root_cause_comes_first_however_many_lines_follow_it() -> None:
    log = (
        "\x1b[31mstarting\x1b[0m\n" + ELASTIC + "[rank1]: Traceback (most recent call last):\n"
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
        "RuntimeError: CUDA error: device-side assert triggered\n"
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    )

    findings = diagnose(log)

    assert [(finding.name, finding.line_number) for finding in findings] == [
        ("GPU out of memory", 8),
        ("id outside the vocabulary", 9),
        ("another rank failed", 2),
    ]
    assert findings[0].line.startswith("torch.OutOfMemoryError")


def test_a_healthy_log_gives_no_findings() -> None:
    log = (
        "trainable params: 1,949,696 || all params: 6,245,533,696\n"
        "step 10/837  loss 2.0134  lr 9.9e-05  grad norm 0.731  41 tokens/s\n"
        "{'loss': 0.0312, 'grad_norm': 0.5, 'learning_rate': 0.0, 'epoch': 1.0}\n"
        "step 20/837  held-out loss 1.8012  (best before: 1.9000 at step 10)\n"
    )

    assert diagnose(log) == []


def test_of_an_unknown_log_the_last_error_is_shown() -> None:
    log = "KeyError: 'a'\nWidgetError: the frobnicator is out of oil\n\n  done cleaning up\n"

    assert diagnose(log) == []
    assert last_error_line(log) == "WidgetError: the frobnicator is out of oil"
    assert last_error_line("one\ntwo\n\n") == "two"
    assert last_error_line("") == ""


PROMPT = "[gMASK]sop<|user|> \\n 你好<|assistant|>"


@pytest.mark.parametrize(
    "line",
    [
        f"asked '{PROMPT}': 一",
        f"inputs:\n{PROMPT}",
        f"[INFO:swift] [INPUT] {PROMPT}",
    ],
)
def test_a_prompt_that_is_shown_as_a_prompt_is_no_symptom(line: str) -> None:
    assert diagnose(line) == []
    assert [each.name for each in diagnose(PROMPT)] == ["special tokens in the text"]


STEP = "step 10/837  loss 2.0134  lr 9.9e-05  grad norm 0.731  41 tokens/s\n"
ERROR = "ValueError: Attempting to unscale FP16 gradients.\n"


@pytest.mark.parametrize(
    "filler",
    [
        "\n" * 1_000_000,
        " \n" * 500_000,
        "x" * 2_000_000,
        "x " * 1_000_000,
        "loss " * 200_000,
        "\r 99%|█| loss" * 50_000,
        STEP * 20_000,
        "eval(content)\n" + "\n" * 500_000,
        "modeling_chatglm.py\n" * 5_000,
    ],
    ids=lambda filler: repr(filler[:20]),
)
def test_a_long_log_is_searched_in_seconds_to_its_end(filler: str) -> None:
    began = time.process_time()
    [finding] = diagnose(filler + "\n" + ERROR)
    assert last_error_line(filler + "\n" + ERROR) == ERROR.strip()

    assert time.process_time() - began < 10  # 0.1 to 2 s; 40,000 blank lines once took 44 s
    assert finding.name == "unscale FP16"
    assert finding.line_number == filler.count("\n") + 2


def test_the_text_of_a_progress_bar_before_an_error_is_not_part_of_its_line() -> None:
    [finding] = diagnose("  3%|▎| 1/30\r  6%|▋| 2/30\r" + ERROR)

    assert (finding.line, finding.line_number) == (ERROR.strip(), 1)


def test_each_alternative_of_a_symptom_has_a_literal_that_its_matches_contain() -> None:
    parts = [part for each in SYMPTOMS for part in split_alternatives(each.pattern)]

    assert len(parts) > len(SYMPTOMS)
    assert [part.pattern.pattern for part in parts if len(part.literal) < 4] == []


def test_a_pattern_is_split_outside_of_groups_and_sets_only() -> None:
    parts = split_alternatives(r"ab(c|d)efg|[|x]hij?|k\|lmn+|(a|b)|op{2,3}q\.r\w")

    assert [(part.pattern.pattern, part.literal) for part in parts] == [
        ("ab(c|d)efg", "efg"),
        ("[|x]hij?", "hi"),
        (r"k\|lmn+", "k|lmn"),
        ("(a|b)", ""),
        (r"op{2,3}q\.r\w", "q.r"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_a_log_is_read_in_the_encodings_of_consoles(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    file.write_bytes(f"训练开始\n{ERROR}".encode(encoding))

    assert read_log(str(file)) == f"训练开始\n{ERROR}"


def test_what_is_no_log_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, large = tmp_path / "model.bin", tmp_path / "large.log"
    binary.write_bytes(bytes(range(256)) * 99)
    large.write_text("x" * 2000)

    with pytest.raises(DataError, match=r"model\.bin: is not a text: it has control characters"):
        read_log(str(binary))
    monkeypatch.setattr(doctor_log, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"large\.log: has more than .*tail -c 50000000 FILE \|"):
        read_log(str(large))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_log(str(tmp_path))
