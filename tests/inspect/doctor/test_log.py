"""A log is diagnosed: the root cause first, and nothing in a healthy log."""

from glmtune.inspect.doctor.log import diagnose, last_error_line

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
