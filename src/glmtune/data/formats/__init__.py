"""A row in one of the common formats -> a conversation.

    alpaca           {"instruction": ..., "input": ..., "output": ..., "history": [[q, a]]}
    prompt_response  {"prompt": ..., "response": ...}; likewise query_response, and others
    sharegpt         {"conversations": [{"from": "human", "value": ...}], "tools": ...}
    openai           {"messages": [{"role": "user", "content": ...}], "tools": ...}
    chatglm3         {"conversations": [{"role": "user", "content": ...}], "tools": ...}
    chosen_rejected  any of these with a better answer and a worse one: {"prompt": ...,
    ...              "chosen": ..., "rejected": ...}; or with a column rejected_response

The format of a file is found by its columns, or given by name; `columns` says which of their
columns is our field, `roles` which of their roles is ours. Nothing else is guessed: a number
where text is expected is refused, since 1, 1.0 and "1" are different texts. All formats are in
`table.FORMATS`, and what is not read is counted by `unread.KeyScan`.
"""

from glmtune.data.formats.conversion import (
    convert,
    convert_labeled,
    convert_pair,
    convert_sides,
    split_answer,
    without_history,
)
from glmtune.data.formats.detection import detect
from glmtune.data.formats.format import Format
from glmtune.data.formats.roles import check_roles
from glmtune.data.formats.table import FORMATS, PAIR_FORMATS, TEXTS
from glmtune.data.formats.unread import KeyScan, Notes, UnreadKey

__all__ = [
    "FORMATS",
    "PAIR_FORMATS",
    "TEXTS",
    "Format",
    "KeyScan",
    "Notes",
    "UnreadKey",
    "check_roles",
    "convert",
    "convert_labeled",
    "convert_pair",
    "convert_sides",
    "detect",
    "split_answer",
    "without_history",
]
