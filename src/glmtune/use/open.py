"""Open a model, and an adapter over it, by folder or hub id.

    name, adapter folder -> base, template     no weights are read yet
    base, adapter folder -> model              loaded where it runs fastest
    model, template      -> chat session

An adapter folder alone is enough: it names its base, and `glmtune.json` names its template.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import glmtune.auto  # noqa: F401  # registers ChatGLM with transformers
from glmtune.conversation import Message
from glmtune.errors import CheckpointError
from glmtune.methods import method
from glmtune.methods.adapter_folder import CARD, CONFIG, check_template, load_card, read_config
from glmtune.model.config_file import TOKENIZER_CONFIG
from glmtune.model.files import check_path
from glmtune.model.load import load_frozen_model, load_tokenizer
from glmtune.recipe.choices import LAYOUTS, Compute, Layout
from glmtune.template.base import Template
from glmtune.template.select import template_for
from glmtune.use.chat import ChatSession
from glmtune.use.generate import Sampling

logger = logging.getLogger(__name__)


def open_session(
    name: str,
    adapter_folder: str | Path | None = None,
    *,
    layout: Layout | None = None,
    dtype: str = "auto",
    compute: Compute | None = None,
    system: Sequence[Message] = (),
    sampling: Sampling | None = None,
    any_template: bool = False,
) -> ChatSession:
    """Load a model, and an adapter over it, and start a conversation.

    Args:
        name: a folder or hub id of a model; or an adapter folder, which names its base.
        adapter_folder: what `glmtune train` wrote.
        layout: how prompts are built; None uses that of the adapter, or "official".
        dtype: of the weights, or "auto".
        compute: "int8" multiplies in int8, "fp8" in float8 on a GPU that can.
        system: messages before the conversation.
        sampling: how tokens are sampled.
        any_template: allow an adapter that was trained on other prompts.

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
    """Find the base and the template of a model and an adapter; no weights are read.

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
    tuned = folder or Path(name)  # a complete model that was tuned has a glmtune.json, too
    if folder is not None or (tuned / CARD).is_file():
        layout = layout or _layout_of(tuned)
    template = template_for(load_tokenizer(tokenizer_folder(name, folder)), layout or "official")
    if not any_template:
        check_template(tuned, template)
    return name, folder, template


def tokenizer_folder(name: str | Path, adapter: Path | None) -> str | Path:
    """Return where the tokenizer is: with an adapter that added tokens to it, or with the base.

    Args:
        name: folder or hub id of the base.
        adapter: folder of the adapter.
    """
    if adapter is None or not (adapter / CONFIG).is_file():
        return name
    adds = read_config(adapter).get("trainable_token_indices")
    return adapter if adds and (adapter / TOKENIZER_CONFIG).is_file() else name


def load_tuned(
    name: str,
    folder: Path | None,
    *,
    dtype: str = "auto",
    compute: Compute | None = None,
) -> Any:
    """Load a model, and an adapter over it, on the fastest device.

    Raises:
        CheckpointError: a folder is damaged, or the adapter is of another model.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    # Spread over all GPUs, or quantized on one.
    device_map = None if device.type == "cpu" or compute is not None else "auto"
    model: Any = load_frozen_model(
        name, dtype=dtype, device=device, compute=compute, device_map=device_map
    )
    return model if folder is None else method.load(model, folder)


def base_of(folder: Path, *, advice: str = "") -> str:
    """Find the model that an adapter was trained on.

    If its path does not exist here, a folder of the same name is searched near the adapter, near
    the working directory and in the cache of the hub.

    Args:
        folder: of the adapter.
        advice: how to name it, for the message; "" is that of `glmtune chat`.

    Raises:
        CheckpointError: the adapter does not name it, or it was not found.
    """
    base = method.base_name(folder)
    advice = advice or f"Name it: glmtune chat MODEL --adapter {folder}."
    if not base:
        raise CheckpointError(f"{folder}: the adapter does not name its base model. {advice}")
    check_path(base)
    if Path(os.path.expanduser(base)).is_dir():
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
        return base  # a hub id without an owner, such as gpt2
    searched = ", ".join(str(place.parent) for place in places)
    raise CheckpointError(
        f"{folder}: the adapter's base model is {base}, which does not exist, and there is no "
        f"{name} in {searched}. {advice}"
    )


def _places_of(name: str, folder: Path) -> list[Path]:
    """List the folders in which the base of an adapter is searched by its name."""
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
    """Return the layout that an adapter was trained with; None if its folder records none."""
    card = load_card(folder)
    if card is None:
        logger.warning(
            "%s has no glmtune.json, which records how prompts were built. "
            "If its answers look wrong, try --layout tutorial.",
            folder,
        )
        return None
    return next((layout for layout in LAYOUTS if layout == card.template.get("layout")), None)
