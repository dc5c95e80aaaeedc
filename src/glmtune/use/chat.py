"""A conversation in progress: a message in, a message out, tool calls between.

    session = open_session("./chatglm3-6b", "out/adapter")
    for piece in session.stream("你好"):
        print(piece, end="", flush=True)
    session.last_reply.messages  # what was said, as training would have it

The prompt comes from the same template object that training uses, and the tokens from the same
generator that writes the answers of a run's proofs (`glmtune.use.generate`).
"""

import logging
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch

import glmtune.auto  # noqa: F401  # makes ChatGLM known to transformers
from glmtune.conversation import (
    TOOLS_PROMPT,
    Conversation,
    Message,
    Role,
    check_turns,
    read_messages,
)
from glmtune.errors import CheckpointError, TemplateError
from glmtune.methods import method
from glmtune.methods.adapter_folder import CARD, check_template, load_card
from glmtune.model.load import load_frozen_model, load_tokenizer
from glmtune.recipe.choices import LAYOUTS, Layout
from glmtune.template.base import Template
from glmtune.template.select import template_for
from glmtune.use.generate import AnyCache, Request, Sampling, draw, keep_cached, make_cache

logger = logging.getLogger(__name__)

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        messages: what was said; several when a remark stands before a tool call.
        num_tokens: how many were drawn, without the one that ends the answer.
        ended_by: "stop" when the model ended it, "length" when it was cut, "interrupt" when
            the caller stopped it.
        num_left_out: the oldest messages that the prompt had no room for.
    """

    messages: tuple[Message, ...]
    num_tokens: int
    ended_by: Literal["stop", "length", "interrupt"]
    num_left_out: int

    @property
    def text(self) -> str:
        """The answer as it is streamed."""
        return reply_text(self.messages)


def reply_text(messages: Sequence[Message]) -> str:
    r"""Write messages as one text; a tool call is its name, a line break and the call.

    An unfinished reply gives the beginning of what the finished one gives.
    """
    parts = [
        f"{name}\n{message.content}" if (name := message.metadata.strip()) else message.content
        for message in messages
    ]
    return "\n".join(parts)


class ChatSession:
    """A conversation with a model, which grows by what is said on either side.

    Args:
        model: a causal language model, with an adapter over it or not.
        template: how its prompts are built, and what ends an answer.
        system: what stands before the conversation.
        sampling: how tokens are drawn.
    """

    def __init__(
        self,
        model: Any,
        template: Template,
        *,
        system: Sequence[Message] = (),
        sampling: Sampling | None = None,
    ) -> None:
        self.model = model.eval()
        self.template = template
        self.sampling = sampling or Sampling()
        self.system = tuple(system)
        self.messages = self.system
        self.last_reply: Reply | None = None
        self._generator = self.sampling.generator(model.device)
        self._cache: AnyCache | None = None
        self._cached_ids: list[int] = []

    def reset(self, system: Sequence[Message] | None = None) -> None:
        """Forget what was said, and take another system message if one is given."""
        if system is not None:
            self.system = tuple(system)
        self.messages = self.system

    def undo(self) -> bool:
        """Take back the last user message and what followed it; False when there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                self.messages = self.messages[:index]
                return True
        return False

    def reply(self, text: str, role: Role = "user") -> Reply:
        """Answer a message.

        Raises:
            TemplateError: the message cannot stand here, or is too long for the model.
            CheckpointError: the model gives scores that are not finite.
        """
        for _ in self.stream(text, role):
            pass
        assert self.last_reply is not None
        return self.last_reply

    def stream(self, text: str, role: Role = "user") -> Generator[str, None, None]:
        """Answer a message piece by piece; whole characters, which joined are the answer.

        Closing the iterator, or an interrupt, ends the answer and keeps what there is of it.
        After an error the conversation is as it was before.

        Args:
            text: what is said.
            role: who says it; "observation" gives the result of a tool.

        Raises:
            TemplateError: the message cannot stand here, or is too long for the model.
            CheckpointError: the model gives scores that are not finite.
        """
        before = self.messages if self.has_history else self.system
        messages, prompt_ids = self._fit((*before, Message(role, text)))
        num_left_out = len(before) + 1 - len(messages)
        cache, num_cached = self._take_cache(prompt_ids)
        ids: list[int] = []
        shown = ""
        try:
            for ids in self._draw(prompt_ids, cache, num_cached):
                said = reply_text(self.template.parse(ids))
                if said.startswith(shown) and not said.endswith(UNFINISHED) and said != shown:
                    piece, shown = said[len(shown) :], said
                    yield piece
        except (GeneratorExit, KeyboardInterrupt):
            if ids:
                self._remember(messages, ids, num_left_out, is_interrupted=True)
            raise
        self._cache, self._cached_ids = cache, [*prompt_ids, *ids[:-1]]  # the last was not fed
        reply = self._remember(messages, ids, num_left_out)
        if rest := reply.text.removeprefix(shown):  # bytes that never became a character
            yield rest

    def _draw(
        self, prompt_ids: Sequence[int], cache: AnyCache, num_cached: int
    ) -> Iterator[list[int]]:
        """Draw an answer, and give it after each token, up to and with the one that ends it."""
        max_new_tokens = self.sampling.max_new_tokens
        if (context := self.context_length) is not None:
            max_new_tokens = min(max_new_tokens, context - len(prompt_ids))
        request = Request(prompt_ids, max_new_tokens, self._generator, num_cached)
        drawn = draw(
            self.model,
            [request],
            cache,
            stop_ids=self.template.stop_ids,
            sampling=self.sampling,
        )
        for written, _ in drawn:
            yield written.ids

    def _remember(
        self,
        messages: tuple[Message, ...],
        ids: Sequence[int],
        num_left_out: int,
        *,
        is_interrupted: bool = False,
    ) -> Reply:
        """Make the answer part of the conversation."""
        is_stopped = ids[-1] in self.template.stop_ids
        said = tuple(self.template.parse(ids))
        self.messages = (*messages, *said)
        self.last_reply = Reply(
            messages=said,
            num_tokens=len(ids) - is_stopped,
            ended_by="interrupt" if is_interrupted else "stop" if is_stopped else "length",
            num_left_out=num_left_out,
        )
        return self.last_reply

    @property
    def has_history(self) -> bool:
        """Whether the template has a place for earlier turns; `plain` completes a prompt."""
        return self.template.description.get("layout") != "plain"

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made for; None when its config does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def _fit(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], list[int]]:
        """Leave out the oldest turns until the prompt leaves room for an answer."""
        check_turns(messages)
        prompt_ids = self.template.prompt_ids(Conversation(messages))
        if (context := self.context_length) is None:
            return messages, prompt_ids
        room = min(self.sampling.max_new_tokens, context // 2)
        while len(prompt_ids) + room > context and (later := _without_oldest_turn(messages)):
            messages = later
            prompt_ids = self.template.prompt_ids(Conversation(messages))
        if len(prompt_ids) >= context:
            raise TemplateError(
                f"the prompt has {len(prompt_ids):,} tokens, which leaves no room for an answer "
                f"in the {context:,} that the model was made for. Shorten the message."
            )
        return messages, prompt_ids

    def _take_cache(self, prompt_ids: Sequence[int]) -> tuple[AnyCache, int]:
        """Give keys and values of the beginning of a prompt, and of how many tokens.

        The session keeps none meanwhile, since an interrupt may leave them half written.
        """
        cache, cached_ids = self._cache, self._cached_ids
        self._cache = None
        if cache is None:
            return make_cache(self.model), 0
        same = takewhile(lambda pair: pair[0] == pair[1], zip(cached_ids, prompt_ids, strict=False))
        num_shared = min(len(list(same)), len(prompt_ids) - 1)  # one at least is run
        if not keep_cached(cache, num_shared, len(cached_ids)):
            return make_cache(self.model), 0
        return cache, num_shared


def _without_oldest_turn(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """Leave out the first user message and its answers; None when that would be all."""
    turns = [index for index, message in enumerate(messages) if message.role == "user"]
    return None if len(turns) < 2 else messages[: turns[0]] + messages[turns[1] :]


# ---- from folders to a session -----------------------------------------------------------


def open_session(
    name: str,
    adapter_folder: str | Path | None = None,
    *,
    layout: Layout | None = None,
    dtype: str = "auto",
    compute: Literal["int8"] | None = None,
    system: Sequence[Message] = (),
    sampling: Sampling | None = None,
    any_template: bool = False,
) -> ChatSession:
    """Load a model, and an adapter over it, and begin a conversation.

    Args:
        name: a folder or hub id of a model; or an adapter folder, which names its base.
        adapter_folder: what `glmtune train` wrote.
        layout: how prompts are built; None is as the adapter's were, else "official".
        dtype: of the weights, or "auto".
        compute: "int8" multiplies in int8, on a CPU.
        system: what stands before the conversation.
        sampling: how tokens are drawn.
        any_template: use an adapter that was trained on other prompts.

    Raises:
        CheckpointError: a folder is missing or damaged, or the adapter is of another model.
        TemplateError: the adapter was trained on other prompts.
    """
    base, folder, template = open_template(
        name, adapter_folder, layout=layout, any_template=any_template
    )
    model = load_tuned(base, folder, dtype=dtype, compute=compute)
    return ChatSession(model, template, system=system, sampling=sampling)


def open_template(
    name: str,
    adapter_folder: str | Path | None = None,
    *,
    layout: Layout | None = None,
    any_template: bool = False,
) -> tuple[str, Path | None, Template]:
    """Find how a model, and an adapter over it, are asked; no weights are read.

    Args:
        name, adapter_folder, layout, any_template: as for `open_session`.

    Returns:
        The folder or hub id of the base, the folder of the adapter, and the template.

    Raises:
        CheckpointError: a folder is missing or damaged.
        TemplateError: the adapter was trained on other prompts.
    """
    if adapter_folder is None and method.is_adapter(Path(name)):
        name, adapter_folder = base_of(Path(name)), name
        logger.info("%s is an adapter; its base is %s", adapter_folder, name)
    folder = None if adapter_folder is None else Path(adapter_folder)
    if folder is not None:
        method.check_folder(folder)
    tuned = folder or Path(name)  # a whole model that we tuned says how it is asked, too
    if folder is not None or (tuned / CARD).is_file():
        layout = layout or _layout_of(tuned)
    template = template_for(load_tokenizer(name), layout or "official")
    if not any_template:
        check_template(tuned, template)
    return name, folder, template


def load_tuned(
    name: str,
    folder: Path | None,
    *,
    dtype: str = "auto",
    compute: Literal["int8"] | None = None,
) -> Any:
    """Load a model, and an adapter over it, where it runs fastest.

    Raises:
        CheckpointError: a folder is damaged, or the adapter is of another model.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    device_map = None if device.type == "cpu" else "auto"  # spread over what GPUs there are
    model: Any = load_frozen_model(
        name, dtype=dtype, device=device, compute=compute, device_map=device_map
    )
    return model if folder is None else method.load(model, folder)


def base_of(folder: Path) -> str:
    """Give the model that an adapter was trained on.

    Where it lay on another machine, or has been moved since, a folder of its name is looked for
    around the adapter, around the working directory and in the cache of the hub.

    Raises:
        CheckpointError: the adapter does not say, or the model was not found.
    """
    base = method.base_name(folder)
    advice = f"Give it: glmtune chat MODEL --adapter {folder}."
    if not base:
        raise CheckpointError(f"{folder}: the adapter does not name its base model. {advice}")
    if Path(base).expanduser().is_dir():
        return base
    *parents, name = re.split(r"[\\/]+", base.rstrip("\\/"))
    is_hub_id = len(parents) == 1 and "\\" not in base and not base.startswith((".", "/", "~"))
    if is_hub_id:
        return base
    places = _places_of(name, folder)
    for place in places:
        if (place / "config.json").is_file():
            logger.warning("%s: its base model %s is taken from %s", folder, base, place)
            return str(place)
    if not parents:
        return base  # an id of the hub's early days, such as gpt2
    looked = ", ".join(str(place.parent) for place in places)
    raise CheckpointError(
        f"{folder}: the adapter's base model is {base}, which is not there, nor is a {name} in "
        f"{looked}. {advice}"
    )


def _places_of(name: str, folder: Path) -> list[Path]:
    """List where a model of this name may lie that belongs to an adapter."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    around = [*folder.resolve().parents[:3], Path.cwd(), Path.cwd() / "models"]
    places = [place / name for place in dict.fromkeys(around)]
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        cached = frozenset()
    places += sorted(
        revision.snapshot_path
        for repo in cached
        if repo.repo_type == "model" and repo.repo_id.rpartition("/")[2] == name
        for revision in repo.revisions
    )
    return places


def _layout_of(folder: Path) -> Layout | None:
    """Give the layout that an adapter was trained in."""
    card = load_card(folder)
    if card is None:
        logger.warning(
            "%s has no glmtune.json, so it does not say how its prompts were built. "
            "If its answers look wrong, try --layout tutorial.",
            folder,
        )
        return None
    return next((layout for layout in LAYOUTS if layout == card.template.get("layout")), None)


def system_messages(text: str | None, tools: Sequence[Any] | None = None) -> tuple[Message, ...]:
    """Make the messages that stand before a conversation, and announce tools in them."""
    if text is None and tools is None:
        return ()
    content = TOOLS_PROMPT if text is None else text
    return read_messages([{"role": "system", "content": content}], tools)
