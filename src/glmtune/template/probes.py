"""Sample conversations whose ids are part of a template's fingerprint."""

from __future__ import annotations

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message

_TOOL = {"name": "weather", "description": "天气", "parameters": {"city": {"type": "string"}}}
PLAIN_PROBES = (
    Conversation((Message("user", "你好 <|user|>\n12 😀"), Message("assistant", " 好的。\n\n```"))),
)
ROUND_PROBES = (
    *PLAIN_PROBES,
    Conversation((*PLAIN_PROBES[0], Message("user", ""), Message("assistant", "3 [gMASK]sop"))),
)
PROBES = (
    *PLAIN_PROBES,
    Conversation(
        (
            Message("system", TOOLS_PROMPT, tools=[_TOOL]),
            Message("user", ""),
            Message("assistant", "Let me see.", is_learned=False),
            Message("assistant", "```python\ntool_call(city='北京')\n```", metadata="weather"),
            Message("observation", '{"celsius": 3}'),
            Message("assistant", "3 度 [gMASK]sop</s>"),
        )
    ),
)
