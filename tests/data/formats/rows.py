"""One good row of each format, with every column that the format reads."""

from typing import Any

from glmtune.conversation import Conversation, Message
from glmtune.data.formats import FORMATS, KeyScan, Notes, convert, detect
from glmtune.data.rows import Row

WEATHER = {"name": "get_weather", "description": "天气", "parameters": {"type": "object"}}
MESSAGES = [{"role": "user", "content": "北京"}, {"role": "assistant", "content": "3 度。"}]
CHOSEN, REJECTED = MESSAGES, [MESSAGES[0], {"role": "assistant", "content": "不知道。"}]

ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "北京", "output": "3 度。"},
    "prompt_response": {"prompt": "北京", "response": "3 度。"},
    "query_response": {"query": "北京", "response": "3 度。"},
    "question_answer": {"question": "北京", "answer": "3 度。"},
    "content_summary": {"content": "北京", "summary": "3 度。"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "北京"}, {"from": "gpt", "value": "3 度。"}]
    },
    "openai": {"messages": MESSAGES},
    "chatglm3": {"conversations": MESSAGES},
    "chosen_rejected": {"chosen": CHOSEN, "rejected": REJECTED},
    "rejected_response": {"query": "北京", "response": "3 度。", "rejected_response": "不知道。"},
    "dolly": {"instruction": "北京", "response": "3 度。"},
    "prompt_completion": {"prompt": "北京", "completion": "3 度。"},
    "input_output": {"input": "北京", "output": "3 度。"},
    "input_target": {"input": "北京", "target": "3 度。"},
    "conversation": {"conversation": [{"human": "北京", "assistant": "3 度。"}]},
    "ultrachat": {"data": ["北京", "3 度。"]},
}
SINGLE = [name for name, format in FORMATS.items() if not format.is_pair]


def row(**fields: Any) -> Row:
    return Row(fields, "rows.json", 7)


def read(**fields: Any) -> tuple[Message, ...]:
    """Find the format of one row and read it."""
    return convert(row(**fields), detect([row(**fields)])).messages


def unread(**fields: Any) -> list[str]:
    """The keys of a row that nothing reads; the row must be one that can be used."""
    format = detect([row(**fields)])
    convert(row(**fields), format)
    notes = Notes()
    KeyScan(format, {}, {}).note(row(**fields), notes)
    return list(notes.unread)


def talk(*messages: Message) -> Conversation:
    return Conversation(messages)


def user_and_assistant(question: str, answer: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", answer)
