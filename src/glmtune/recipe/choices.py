"""Values that keys of a recipe and options of commands share, without any heavy import."""

from typing import Literal, get_args

Dtype = Literal["auto", "bfloat16", "float16", "float32"]  # of weights
Compute = Literal["int8", "fp8"]  # the arithmetic of frozen linear layers
Layout = Literal["official", "tutorial", "chatglm2", "plain"]  # how a row becomes token ids
Overlong = Literal["drop", "truncate_prompt", "tutorial"]  # rows longer than data.max_length
BadRows = Literal["fail", "skip"]  # rows that cannot be read
Stage = Literal["sft", "dpo", "kto"]  # what a row teaches: an answer, a preference, a verdict
# What generated answers are scored by (use/evaluate/metrics.py).
MetricName = Literal[
    "exact",
    "contains",
    "number",
    "bleu-4",
    "chrf",
    "rouge-1",
    "rouge-2",
    "rouge-l",
    "rouge-1-char",
    "rouge-2-char",
    "rouge-l-char",
    "json",
    "tool-name",
    "tool-call",
    "stop",
    "length",
]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
