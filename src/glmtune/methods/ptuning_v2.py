"""P-Tuning v2 in the original's own layout: keys and values that every layer finds before a text.

    config.json           the base's, with pre_seq_len and prefix_projection, and where it lay
    pytorch_model.bin     transformer.prefix_encoder.*, and nothing else
    glmtune.json          how prompts are built; not in folders that the original has written

Such a folder is what the training scripts of ChatGLM2 and ChatGLM3 leave, and what they load. The
prefix is seen by each example of a pack and takes no position.

Source: spec section 6; https://arxiv.org/abs/2110.07602.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import CheckpointError, RecipeError
from glmtune.files import write_atomically
from glmtune.methods.adapter_folder import read_json, write_card
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import (
    ChatGLMForConditionalGeneration,
    ChatGLMPrefixEncoder,
)
from glmtune.recipe.methods import PtuningV2Section
from glmtune.template.base import Template

GIVES = "the prefix gives"  # other logits, should the file be another

CONFIG = "config.json"
WEIGHTS = "pytorch_model.bin"
PREFIX = "transformer.prefix_encoder."


def check_fits(config: Any) -> None:
    """Refuse a model that is no ChatGLM.

    Raises:
        RecipeError: says what to take instead.
    """
    if not isinstance(config, ChatGLMConfig):
        raise RecipeError(
            "adapter.method=ptuning_v2 has the layout of ChatGLM2 and ChatGLM3, and this is a "
            f"model of type {config.model_type!r}. Use adapter.method=prefix_tuning."
        )


def attach(model: Any, section: PtuningV2Section) -> Any:
    """Freeze a model and give it a fresh prefix in float32; one that it has already is kept.

    Raises:
        RecipeError: the model is no ChatGLM, or has a prefix of another shape.
    """
    check_fits(model.config)
    model.requires_grad_(False)
    config = model.config
    held, wanted = (
        (config.pre_seq_len, config.prefix_projection),
        (section.pre_seq_len, section.prefix_projection),
    )
    if not config.pre_seq_len:
        model.transformer.add_prefix_encoder(*wanted)
    elif held != wanted:
        raise RecipeError(
            f"the model has a prefix already, and the recipe describes another. To go on with it, "
            f"set adapter.pre_seq_len={held[0]} adapter.prefix_projection={held[1]}."
        )
    _encoder(model).float().requires_grad_(True)
    return model


def _encoder(model: Any) -> ChatGLMPrefixEncoder:
    encoder = model.transformer.prefix_encoder
    assert isinstance(encoder, ChatGLMPrefixEncoder)
    return encoder


def is_trained(model: nn.Module) -> bool:
    """Whether the prefix is what is trained of a model, and all of it."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return bool(trained) and all(name.startswith(PREFIX) for name in trained)


def save(model: Any, folder: Path, template: Template) -> None:
    """Write the prefix, and how its prompts were built, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {PREFIX + name: tensor for name, tensor in _encoder(model).state_dict().items()}
    torch.save({name: tensor.cpu() for name, tensor in state.items()}, folder / WEIGHTS)
    config = json.loads(model.config.to_json_string()) | {"_name_or_path": model.name_or_path}
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_card(folder, template)


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a prefix, and not the model that it is for."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        return False
    if not read_json(folder / CONFIG).get("pre_seq_len"):
        return False
    try:
        names = torch.load(folder / WEIGHTS, map_location="meta", weights_only=True, mmap=True)
    except Exception:  # torch names no common base; loading says what is wrong with it
        return False
    return bool(names) and all(str(name).startswith(PREFIX) for name in names)


def base_name(folder: Path) -> str:
    """Give the model that a prefix was trained on; "" where the folder does not say."""
    return str(read_json(folder / CONFIG).get("_name_or_path") or "")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a prefix, by their names in its encoder.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    file = folder / WEIGHTS
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common base of what a damaged file raises
        raise CheckpointError(
            f"{file}: damaged, half written, or not plain weights ({error}). Use an earlier one."
        ) from None
    if others := [name for name in stored if not name.startswith(PREFIX)]:
        raise CheckpointError(
            f"{file}: expected nothing but {PREFIX}*, and it holds {others[0]}. "
            "If it is a whole model, give it as MODEL."
        )
    return {name.removeprefix(PREFIX): tensor.float() for name, tensor in stored.items()}


def load(model: nn.Module, folder: Path) -> Any:
    """Put a saved prefix over its base model.

    Raises:
        CheckpointError: the folder is damaged, or the prefix is of another model.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(model, ChatGLMForConditionalGeneration):
        raise CheckpointError(
            f"{folder}: a P-Tuning v2 prefix of ChatGLM does not fit {type(model).__name__}."
        )
    length, projection = int(config["pre_seq_len"]), bool(config.get("prefix_projection"))
    model.transformer.add_prefix_encoder(length, projection)
    restore(folder, model)
    return model.requires_grad_(False)


def restore(folder: Path, model: Any) -> None:
    """Put the weights of a saved prefix into the one in memory.

    Raises:
        CheckpointError: a tensor is missing, was not expected, or has another shape.
    """
    _fill(_encoder(model), folder)


def _fill(encoder: ChatGLMPrefixEncoder, folder: Path) -> None:
    try:
        encoder.load_state_dict(read_tensors(folder))
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: the prefix does not fit this model: {' '.join(str(error).split())} "
            "Check that it was trained on the same base."
        ) from None


@contextmanager
def as_saved(model: Any, folder: Path) -> Iterator[Any]:
    """Let the prefix on disk answer in place of the trained one, for a while."""
    ours = _encoder(model)
    stored = type(model.config).from_pretrained(folder)
    saved = ChatGLMPrefixEncoder(stored, stored.pre_seq_len).to(model.device).eval()
    _fill(saved, folder)
    model.transformer.prefix_encoder = saved
    try:
        yield model
    finally:
        model.transformer.prefix_encoder = ours
