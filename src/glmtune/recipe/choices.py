"""Values that keys of a recipe and options of commands share, without any heavy import."""

from typing import Literal, get_args

Dtype = Literal["auto", "bfloat16", "float16", "float32"]  # of weights
Layout = Literal["official", "tutorial", "chatglm2", "plain"]  # how a row becomes token ids
Overlong = Literal["drop", "truncate_prompt", "tutorial"]  # rows longer than data.max_length
BadRows = Literal["fail", "skip"]  # rows that cannot be read
Stage = Literal["sft", "dpo", "kto"]  # what a row teaches: an answer, a preference, a verdict

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
