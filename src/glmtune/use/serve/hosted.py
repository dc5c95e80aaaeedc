"""Load a base and adapters over it, so that one process answers with any of them.

    adapters                   in one batch
    LoRA, any number           the base and all of them: each token has the update of its own
    one of another method      its own batch and the base's, which take turns

Every name has the template that its adapter was trained with, so requests to two of them may differ
in layout and stop tokens.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.conversation import Conversation, Message
from glmtune.errors import CheckpointError
from glmtune.kernels.routed_lora import RoutedLora, Router
from glmtune.kernels.row_cache import RowCache, VirtualTokens, supports_row_cache, virtual_tokens_of
from glmtune.methods import method
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_tokenizer
from glmtune.recipe.choices import Compute, Layout
from glmtune.template.base import Template
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.select import template_for
from glmtune.use.generate import row_attention
from glmtune.use.open import load_tuned, open_template
from glmtune.use.serve.token_text import token_bytes

NAME = re.compile(r"[^\s/\\=,\x00-\x1f]{1,100}")


@dataclass(frozen=True, slots=True)
class Lane:
    """A model in one of its states; the sequences of a lane are generated in one batch.

    Attributes:
        model: with the adapters of the lane.
        virtual: tokens before every text.
        router: assigns the LoRA of several adapters to tokens; None if there is nothing to assign.
        state: a context in which the model is in this state.
    """

    model: Any
    virtual: VirtualTokens
    router: Router | None = None
    state: Callable[[], AbstractContextManager[Any]] = nullcontext

    @torch.no_grad()
    def embed(self, adapter: str, ids: Sequence[int]) -> list[float]:
        """Return the mean of the last hidden states of a text, (hidden,).

        Args:
            adapter: whose update is applied; "" is none.
            ids: of the text.
        """
        cache = RowCache(1, self.virtual) if supports_row_cache(self.model) else None
        inputs = cache.feed([0], [len(ids)], self.model.device) if cache is not None else {}
        if self.router is not None:
            self.router.assign([adapter], [len(ids)], self.model.device)
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        with self.state(), row_attention(self.model, cache):
            output = inner.base_model(
                input_ids=torch.tensor([list(ids)], device=self.model.device), **inputs
            )
        hidden: Tensor = output.last_hidden_state[0].float()
        mean: list[float] = hidden.mean(0).tolist()
        return mean


@dataclass(frozen=True, slots=True)
class Served:
    """A name under which requests are answered.

    Attributes:
        name: of the base or an adapter.
        parent: the name of the base, for an adapter.
        adapter: whose update is applied; "" is the base alone.
        lane: in which it is generated.
        template: builds its prompts.
        text_template: encodes a text without roles, for completions and embeddings.
        tokenizer: of the base.
        token_bytes: gives the bytes of a token.
    """

    name: str
    parent: str | None
    adapter: str
    lane: Lane
    template: Template
    text_template: Template | None
    tokenizer: Any
    token_bytes: Callable[[int], bytes | None]

    @property
    def has_tool_calls(self) -> bool:
        """Whether calls of tools can be read back from its answers."""
        layout = self.template.description.get("layout")
        return isinstance(self.template, ChatGLMTemplate) and layout in ("official", "tutorial")

    def text_ids(self, text: str) -> list[int]:
        """Encode a text without roles; what spells a special token stays text.

        Raises:
            TemplateError: the text cannot be encoded.
        """
        if self.text_template is not None:
            return self.text_template.prompt_ids(Conversation((Message("user", text),)))
        ids: list[int] = self.tokenizer(text, split_special_tokens=True)["input_ids"]
        return ids


@dataclass(frozen=True, slots=True)
class Hosted:
    """What a server answers with: lanes, and names by which requests choose."""

    lanes: tuple[Lane, ...]
    names: Mapping[str, Served]
    adapters: Mapping[str, Path]


def open_hosted(
    name: str,
    adapters: Mapping[str, Path],
    *,
    layout: Layout | None = None,
    dtype: str = "auto",
    compute: Compute | None = None,
    any_template: bool = False,
) -> Hosted:
    """Load a model, and adapters over it.

    Args:
        name: a folder or hub id of a model; or an adapter folder, which names its base.
        adapters: folders by the names that requests give.
        layout: how prompts are built; None uses that of each adapter, or "official".
        dtype: of the weights, or "auto".
        compute: "int8" multiplies in int8, "fp8" in float8 on a GPU that can.
        any_template: allow adapters that were trained on other prompts.

    Raises:
        CheckpointError: a folder is missing or damaged, an adapter is of another model, or the
            adapters cannot be served by one process.
        TemplateError: an adapter was trained on other prompts.
    """
    base, own, template = open_template(name, None, layout=layout, any_template=any_template)
    folders = dict(adapters)
    if own is not None:
        folders = {own.resolve().name: own, **folders}
        template = open_template(base, layout=layout, any_template=any_template)[2]
    base_name = base.rstrip("\\/").replace("\\", "/") if not Path(base).exists() else ""
    base_name = base_name or Path(base).resolve().name
    _check_names(base_name, folders)
    templates = {
        each: open_template(base, folder, layout=layout, any_template=any_template)[2]
        for each, folder in folders.items()
    }
    model = load_tuned(base, None, dtype=dtype, compute=compute)
    lanes, lane_of = _make_lanes(model, folders)
    tokenizer = load_tokenizer(base)
    is_chatglm = isinstance(template, ChatGLMTemplate)
    text_template = template_for(tokenizer, "plain") if is_chatglm else None
    bytes_of = cache(partial(token_bytes, tokenizer))
    common = (text_template, tokenizer, bytes_of)
    names = {}
    if "" in lane_of:
        names[base_name] = Served(base_name, None, "", lane_of[""], template, *common)
    for each, its_template in templates.items():
        names[each] = Served(each, base_name, each, lane_of[each], its_template, *common)
    return Hosted(lanes, names, folders)


def _check_names(base_name: str, folders: Mapping[str, Path]) -> None:
    for each in folders:
        if not NAME.fullmatch(each):
            raise CheckpointError(
                f"--adapter {each[:60]!r}: expected a name of at most 100 characters without white "
                "space, slash, comma or equals sign. Give one: --adapter NAME=FOLDER."
            )
        if each == base_name:
            raise CheckpointError(
                f"--adapter {each}: the base has this name, too. Give another one: "
                f"--adapter NAME={folders[each]}."
            )


def _make_lanes(
    model: Any, folders: Mapping[str, Path]
) -> tuple[tuple[Lane, ...], dict[str, Lane]]:
    """Load adapters over a model; return the lanes, and which of them serves each adapter.

    Raises:
        CheckpointError: an adapter does not fit, or the adapters cannot share a process.
    """
    updates: dict[str, dict[str, tuple[Tensor, Tensor, float]]] = {}
    for each, folder in folders.items():
        loaded = method.load(model, folder).eval()
        update = _plain_lora(loaded)
        if update is None and len(folders) > 1:
            raise CheckpointError(
                f"--adapter {each}={folder}: only adapters by plain LoRA share a process, and this "
                "one changes the model in another way. Start a server of its own for it, or merge "
                f"it (glmtune merge {folder} -o MERGED) and serve the result."
            )
        if update is None:
            return _other_lanes(model, loaded, each)
        updates[each] = update
        model = loaded.unload()
    router = Router() if updates else None
    model = model.eval()
    for each, update in updates.items():
        for layer_name, (lora_a, lora_b, scale) in update.items():
            layer = model.get_submodule(layer_name)
            if not isinstance(layer, RoutedLora):
                assert router is not None
                layer = RoutedLora(layer, router)
                model.set_submodule(layer_name, layer)
            layer.add(each, lora_a, lora_b, scale)
    virtual = virtual_tokens_of(model) if supports_row_cache(model) else VirtualTokens()
    lane = Lane(model, virtual, router)
    return (lane,), dict.fromkeys(("", *folders), lane)


def _plain_lora(loaded: Any) -> dict[str, tuple[Tensor, Tensor, float]] | None:
    """Return A, B and the scale of every adapted layer; None if that is not the whole adapter."""
    from peft import PeftModel, get_peft_model_state_dict

    if not isinstance(loaded, PeftModel) or loaded.active_peft_config.is_prompt_learning:
        return None
    update = {}
    for layer_name, layer in adapted_layers(loaded):
        lora_a, lora_b = layer.lora_A["default"], layer.lora_B["default"]
        is_plain = "default" not in layer.lora_variant and lora_b.bias is None
        if not is_plain or layer.get_base_layer().weight.dim() != 2:
            return None
        scale = layer.scaling["default"]
        update[layer_name] = (lora_a.weight.data, lora_b.weight.data, scale)
    stored = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    return update if update and len(stored) == 2 * len(update) else None


def _other_lanes(model: Any, loaded: Any, name: str) -> tuple[tuple[Lane, ...], dict[str, Lane]]:
    """Make a lane of an adapter by any method, and one of its base where it can be had back."""
    own_virtual = virtual_tokens_of(loaded) if supports_row_cache(model) else VirtualTokens()
    own = Lane(loaded, own_virtual)
    state: Callable[[], AbstractContextManager[Any]]
    if own_virtual.number and loaded is model:  # P-Tuning v2, whose prefix is a part of the model
        state, base = lambda: _without_prefix(model), model
    elif own_virtual.number:
        state, base = nullcontext, loaded.get_base_model()
    elif hasattr(loaded, "disable_adapter") and not _trains_biases(loaded):
        state, base = loaded.disable_adapter, loaded
    else:
        return (own,), {name: own}
    lane = Lane(base, VirtualTokens(), state=state)
    return (own, lane), {name: own, "": lane}


def _trains_biases(loaded: Any) -> bool:
    """Whether an adapter has overwritten biases of its base."""
    return getattr(loaded.active_peft_config, "bias", "none") != "none"


@contextmanager
def _without_prefix(model: Any) -> Iterator[None]:
    prefix, model.transformer.prefix_encoder = model.transformer.prefix_encoder, None
    try:
        yield
    finally:
        model.transformer.prefix_encoder = prefix
