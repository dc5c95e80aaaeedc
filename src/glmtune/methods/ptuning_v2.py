"""P-Tuning v2 in the original's own layout: a trained prefix of keys and values in every layer.

    config.json           the base's, with pre_seq_len, prefix_projection and the base's path
    pytorch_model.bin     transformer.prefix_encoder.*, and nothing else
    glmtune.json          how prompts are built; not in folders that the original wrote

The training scripts of ChatGLM2 and ChatGLM3 write and load such folders. Each example of a pack
attends to the prefix, which takes no position.

Source: spec section 6; https://arxiv.org/abs/2110.07602.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import CheckpointError, RecipeError
from glmtune.files import write_atomically
from glmtune.kernels.finite import check_finite
from glmtune.methods import digest
from glmtune.methods.adapter_folder import write_card
from glmtune.model import card
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import (
    ChatGLMForConditionalGeneration,
    ChatGLMPrefixEncoder,
)
from glmtune.model.config_file import read_config
from glmtune.model.files import read_bin
from glmtune.model.load import load_config
from glmtune.recipe.methods import AdapterSection, PtuningV2Section
from glmtune.template.base import Template

CONFIG = "config.json"
WEIGHTS = "pytorch_model.bin"
PREFIX = "transformer.prefix_encoder."


class PTuningV2:
    """The method of tuning that trains keys and values before the text in every layer."""

    what = "prefix"
    is_difference = True

    def takes(self, section: AdapterSection) -> bool:
        """Whether a section of the recipe asks for this method."""
        return isinstance(section, PtuningV2Section)

    def is_attached(self, model: nn.Module) -> bool:
        """Whether the prefix is all that is trained of a model."""
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        return bool(trained) and all(name.startswith(PREFIX) for name in trained)

    def check_fits(self, section: AdapterSection, name: str) -> None:
        """Refuse a model that is not ChatGLM.

        Raises:
            RecipeError: names the method to use instead.
        """
        _check_config(load_config(name))

    def attach(self, model: Any, section: AdapterSection) -> Any:
        """Freeze a model and add a new prefix in float32; a prefix it already has is kept.

        Raises:
            RecipeError: the model is not ChatGLM, or has a prefix of another shape.
        """
        assert isinstance(section, PtuningV2Section)
        _check_config(model.config)
        model.requires_grad_(False)
        config = model.config
        held = (config.pre_seq_len, config.prefix_projection)
        wanted = (section.pre_seq_len, section.prefix_projection)
        if not config.pre_seq_len:
            model.transformer.add_prefix_encoder(*wanted)
        elif held != wanted:
            raise RecipeError(
                "the model has a prefix already, and the recipe describes another. To continue "
                f"training it, set adapter.pre_seq_len={held[0]} "
                f"adapter.prefix_projection={held[1]}."
            )
        _encoder(model).float().requires_grad_(True)
        return model

    def save(
        self,
        model: Any,
        folder: Path,
        template: Template,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the prefix, and how its prompts were built, to a folder."""
        assert state is None, "the recipe refuses to shard a prefix"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {PREFIX + name: tensor for name, tensor in _encoder(model).state_dict().items()}
        torch.save({name: tensor.cpu() for name, tensor in tensors.items()}, folder / WEIGHTS)
        config = json.loads(model.config.to_json_string()) | {"_name_or_path": model.name_or_path}
        write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        write_card(folder, template, model)

    def restore(self, folder: Path, model: Any) -> None:
        """Restore the weights of the prefix in memory from a saved one.

        Raises:
            CheckpointError: a tensor is missing or unexpected, or has another shape.
        """
        _fill(_encoder(model), folder)

    def load(self, model: nn.Module, folder: Path) -> Any:
        """Add a saved prefix to its base model, to use it.

        Raises:
            CheckpointError: the folder is damaged, or the prefix is of another model.
        """
        length, projection = read_shape(folder)
        if not isinstance(model, ChatGLMForConditionalGeneration):
            raise CheckpointError(
                f"{folder}: a P-Tuning v2 prefix of ChatGLM does not fit {type(model).__name__}. "
                "Use the base that it was trained on."
            )
        model.transformer.add_prefix_encoder(length, projection)
        self.restore(folder, model)
        return model.requires_grad_(False)

    @contextmanager
    def as_saved(self, model: Any, folder: Path) -> Iterator[Any]:
        """Temporarily use the prefix on disk instead of the trained one."""
        trained = _encoder(model)
        config = type(model.config).from_pretrained(folder)
        saved = ChatGLMPrefixEncoder(config, config.pre_seq_len).to(model.device).eval()
        _fill(saved, folder)
        model.transformer.prefix_encoder = saved
        try:
            yield model
        finally:
            model.transformer.prefix_encoder = trained

    def check_tensors(self, model: Any, folder: Path) -> None:
        """Compare nothing besides logits, to which every number of a prefix contributes."""

    def is_folder(self, folder: Path) -> bool:
        """Whether a folder holds a prefix."""
        return is_folder(folder)

    def check_folder(self, folder: Path) -> None:
        """Refuse a prefix that is not what its configuration says, or that was edited.

        Raises:
            CheckpointError: names the file.
        """
        read_shape(folder)
        card.verify(folder)

    def base_name(self, folder: Path) -> str:
        """Return the base that a prefix was trained on; "" if the folder does not name it."""
        return str(read_config(folder).get("_name_or_path") or "")

    def weight_files(self, folder: Path) -> list[Path]:
        """List the files that hold the weights."""
        return [folder / WEIGHTS]

    def digest(self, folder: Path) -> str:
        """Digest what decides the answers: the weights and the configuration."""
        return digest.of_files([*self.weight_files(folder), folder / CONFIG])


def _check_config(config: Any) -> None:
    if not isinstance(config, ChatGLMConfig):
        raise RecipeError(
            "adapter.method=ptuning_v2 has the layout of ChatGLM2 and ChatGLM3, and this is a "
            f"model of type {config.model_type!r}. Use adapter.method=prefix_tuning."
        )


def _encoder(model: Any) -> ChatGLMPrefixEncoder:
    encoder = model.transformer.prefix_encoder
    assert isinstance(encoder, ChatGLMPrefixEncoder)
    return encoder


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a prefix, and not the model that it is for."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        return False
    if not read_config(folder).get("pre_seq_len"):
        return False
    try:
        names = read_bin(folder / WEIGHTS, map_location="meta", mmap=True)
    except CheckpointError:
        return False  # loading the model reports what is wrong with the file
    return bool(names) and all(str(name).startswith(PREFIX) for name in names)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a prefix, by their names in its encoder.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    file = folder / WEIGHTS
    stored = read_bin(file)
    if others := [name for name in stored if not name.startswith(PREFIX)]:
        raise CheckpointError(
            f"{file}: expected nothing but {PREFIX}*, and it holds {others[0]}. "
            "If it is a complete model, give it as MODEL."
        )
    check_finite(str(file), stored)
    return {name.removeprefix(PREFIX): tensor.float() for name, tensor in stored.items()}


def read_shape(folder: Path) -> tuple[int, bool]:
    """Read how long a prefix is, and whether it has an MLP, as configuration and weights say.

    Raises:
        CheckpointError: they contradict each other.
    """
    config, tensors = read_config(folder), read_tensors(folder)
    length, projection = config.get("pre_seq_len"), config.get("prefix_projection", False)
    rows = tuple(tensors["embedding.weight"].shape[:1]) if "embedding.weight" in tensors else ()
    has_mlp = any(name.startswith("trans.") for name in tensors)
    if type(length) is not int or (rows and rows != (length,)):
        raise CheckpointError(
            f"{folder / CONFIG}: pre_seq_len is {length!r}, but {WEIGHTS} holds a prefix of "
            f"{rows[0] if rows else 'unknown'} vectors. Copy both files again."
        )
    if type(projection) is not bool or projection != has_mlp:
        raise CheckpointError(
            f"{folder / CONFIG}: prefix_projection is {projection!r}, but {WEIGHTS} "
            f"{'has' if has_mlp else 'has no'} MLP. Copy both files again."
        )
    return length, projection


def _fill(encoder: ChatGLMPrefixEncoder, folder: Path) -> None:
    try:
        encoder.load_state_dict(read_tensors(folder))
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: the prefix does not fit this model: {' '.join(str(error).split())} "
            "Check that it was trained on the same base."
        ) from None


PTUNING_V2 = PTuningV2()
