"""What a completion may be: one of several beginnings, or a JSON object."""

import codecs
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glmtune.use.serve.json_text import JsonText

NUM_CANDIDATES = 256  # likeliest tokens that are tried before less likely ones
NUM_ALLOWED = 20  # of them, which are sampled from


class Beginnings:
    """The completion must begin with one of several sequences of ids.

    Args:
        choices: the sequences; none is the beginning of another.
    """

    def __init__(self, choices: Sequence[Sequence[int]]) -> None:
        self._choices = [list(choice) for choice in choices]

    def restrict(self, completion: Sequence[int], scores: Tensor) -> Tensor:
        """Leave the tokens that continue a choice; all of them, after a whole one."""
        num_tokens = len(completion)
        allowed = sorted(
            {
                choice[num_tokens]
                for choice in self._choices
                if len(choice) > num_tokens and choice[:num_tokens] == list(completion)
            }
        )
        return _only(scores, allowed) if allowed else scores


class JsonObject:
    """The completion must be a JSON object.

    Of the likeliest tokens, those are left after which the text may still become an object; when it
    is one, only a stop token may follow.

    Args:
        bytes_of: gives the bytes of a token, None for a control token.
        beginning: ids of the empty metadata line, which comes first in ChatGLM.
        stop_ids: tokens that end the completion.
        num_allowed: how many tokens are left; 1 is enough if the likeliest is taken.
    """

    def __init__(
        self,
        bytes_of: Callable[[int], bytes | None],
        beginning: Sequence[int],
        stop_ids: Sequence[int],
        num_allowed: int = NUM_ALLOWED,
    ) -> None:
        self._bytes_of, self._beginning, self._stop_ids = bytes_of, list(beginning), stop_ids
        self._num_allowed = num_allowed
        self._reader = JsonText()
        self._pending = b""  # of a character that is not complete
        self._num_read = 0

    def restrict(self, completion: Sequence[int], scores: Tensor) -> Tensor:
        """Leave the tokens that may come next."""
        start = len(self._beginning)
        if len(completion) < start:
            return _only(scores, [self._beginning[len(completion)]])
        for token_id in completion[start + self._num_read :]:
            text, self._pending = _split(self._pending + (self._bytes_of(token_id) or b""))
            self._reader.feed(text or "")
            self._num_read += 1
        if self._reader.state == "complete":
            return _only(scores, list(self._stop_ids))
        allowed: list[int] = []
        order = scores.argsort(descending=True)
        for first in range(0, order.numel(), NUM_CANDIDATES):
            for token_id in order[first : first + NUM_CANDIDATES].tolist():
                if self._may_follow(token_id):
                    allowed.append(token_id)
                    if len(allowed) == self._num_allowed:
                        return _only(scores, allowed)
            if allowed:
                break
        return _only(scores, allowed or list(self._stop_ids))

    def _may_follow(self, token_id: int) -> bool:
        own = self._bytes_of(token_id)
        if not own:
            return False  # a token without text, which could be repeated for ever
        text, pending = _split(self._pending + own)
        if text is None:
            return False
        after = self._reader.copy().feed(text)
        if pending:
            after.feed("\N{IDEOGRAPHIC SPACE}")  # as any character of several bytes
        return after.state != "invalid"


def _split(data: bytes) -> tuple[str | None, bytes]:
    """Decode bytes up to a last character that is not complete; None if they are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return None, b""
    return text, decoder.getstate()[0]


def _only(scores: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Set the scores of all other tokens to -inf."""
    result = torch.full_like(scores, float("-inf"))
    index = torch.tensor(token_ids, device=scores.device)
    result[index] = scores[index]
    return result
