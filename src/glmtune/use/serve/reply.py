"""Turn the tokens of an answer into text and tool calls, piece by piece.

Joined pieces are the whole answer: the text of `glmtune chat`, up to the first stop string. A call
of a tool is given when it is complete; one that cannot be read back stays text.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.conversation import Message
from glmtune.template.base import decode
from glmtune.template.pieces import UNFINISHED
from glmtune.tool_calls import parse_tool_call
from glmtune.use.chat import reply_text
from glmtune.use.host_sampling import TokenScore
from glmtune.use.serve.hosted import Served
from glmtune.use.serve.token_text import token_bytes, token_text


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, in OpenAI's form.

    Attributes:
        id: of the call, which the message with its result repeats.
        name: of the tool.
        arguments: JSON text.
    """

    id: str
    name: str
    arguments: str

    def as_json(self) -> dict[str, Any]:
        """Return it as clients read it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class ReplyWriter:
    """Reads the growing ids of an answer.

    Args:
        served: whose template parses them.
        stop: texts that end the answer, and are not part of it.
        reads_calls: whether the request declared tools.
        is_text: the answer is a text without roles.

    Attributes:
        is_stopped: whether a stop string has come.
        calls: of tools, once the answer is complete.
    """

    def __init__(
        self,
        served: Served,
        stop: Sequence[str] = (),
        *,
        reads_calls: bool = False,
        is_text: bool = False,
    ) -> None:
        self._served, self._stop = served, stop
        self._reads_calls = reads_calls and served.has_tool_calls
        self._template = served.text_template if is_text else served.template
        self._stop_ids = served.template.stop_ids
        self._shown = ""
        self.is_stopped = False
        self.calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        """All that was given so far."""
        return self._shown

    @property
    def may_stop(self) -> bool:
        """Whether a stop string may end the answer."""
        return bool(self._stop)

    def read(self, ids: Sequence[int], is_complete: bool) -> str:
        """Read the ids of the answer so far, and return what is new.

        Args:
            ids: of the answer, from its beginning.
            is_complete: whether no more will come.
        """
        text = self._text_of(ids, is_complete)
        ends = [text.find(stop) for stop in self._stop if stop in text]
        if ends:
            self.is_stopped = True
            self.calls = ()
            text = text[: min(ends)]
        elif not is_complete:
            text = text.rstrip(UNFINISHED)
            text = text[: len(text) - max(map(len, self._possible_stops(text)), default=0)]
        if not text.startswith(self._shown):
            return ""
        piece, self._shown = text[len(self._shown) :], text
        return piece

    def _possible_stops(self, text: str) -> Iterator[str]:
        """Yield the ends of a text that may be the beginning of a stop string."""
        for stop in self._stop:
            for length in range(min(len(text), len(stop) - 1), 0, -1):
                if text.endswith(stop[:length]):
                    yield stop[:length]
                    break

    def _text_of(self, ids: Sequence[int], is_complete: bool) -> str:
        if self._template is None:  # a text of a family without a plain layout
            own = [each for each in ids if each not in self._stop_ids]
            return decode(self._served.tokenizer, own, skip_special_tokens=True)
        messages = self._template.parse(_until(ids, self._stop_ids))
        if not self._reads_calls:
            return reply_text(messages)
        if is_complete:
            remark, self.calls = read_calls(messages)
            return remark
        decided = messages if self._is_decided(ids) else messages[:-1]
        before = next((i for i, m in enumerate(decided) if m.metadata.strip()), len(decided))
        return reply_text(decided[:before])

    def _is_decided(self, ids: Sequence[int]) -> bool:
        """Whether the first line of the last message is complete, which may name a tool."""
        separator = self._served.tokenizer.convert_tokens_to_ids("<|assistant|>")
        start = max((i + 1 for i, each in enumerate(ids) if each == separator), default=0)
        return "\n" in decode(self._served.tokenizer, ids[start:])


def _until(ids: Sequence[int], stop_ids: Sequence[int]) -> Sequence[int]:
    """Return ids up to the first that ends an answer, which only the last can be."""
    return ids[:-1] if ids and ids[-1] in stop_ids else ids


def read_calls(messages: Sequence[Message]) -> tuple[str, tuple[ToolCall, ...]]:
    """Split an answer into its text and its calls of tools.

    Arguments are read as literals and never evaluated. If one call cannot be read, the whole answer
    is text.
    """
    calls = []
    for message in messages:
        if not (name := message.metadata.strip()):
            continue
        try:
            arguments = parse_tool_call(message.content)
        except ValueError:
            return reply_text(messages), ()
        text = json.dumps(arguments, ensure_ascii=False)
        calls.append(ToolCall(f"call_{secrets.token_hex(12)}", name, text))
    return reply_text([m for m in messages if not m.metadata.strip()]), tuple(calls)


def token_scores(tokenizer: Any, scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """Write the scores of tokens as `logprobs.content` has them."""
    return [
        {
            **_token(tokenizer, score.token_id, score.logprob),
            "top_logprobs": [_token(tokenizer, each, value) for each, value in score.top],
        }
        for score in scores
    ]


def _token(tokenizer: Any, token_id: int, logprob: float) -> dict[str, Any]:
    text, own = token_text(tokenizer, token_id), token_bytes(tokenizer, token_id)
    raw = None if own is None else list(own)
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": raw}
