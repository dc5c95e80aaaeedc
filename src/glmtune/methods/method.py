"""The protocol of a tuning method, and the choice of one for a section, a model or a folder.

    method                                  trains and saves                       file
    lora, qlora, ia3, vera, oft             matrices or scales in layers, as peft  lora.py
    prompt_tuning, p_tuning, prefix_tuning  virtual tokens, as peft                virtual_tokens.py
    ptuning_v2                              a prefix, as the original              ptuning_v2.py
    full, freeze                            the model's own weights                full.py

Each method must `save` and `restore` every trained number exactly. A new method is a section in
`recipe.methods`, a file here, and an entry in METHODS; training, proofs and chat call the
functions below and know of no method by name.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from glmtune.methods import adapter_folder
from glmtune.methods.full import FULL_MODEL
from glmtune.methods.lora import PEFT_ADAPTER
from glmtune.methods.ptuning_v2 import PTUNING_V2
from glmtune.methods.virtual_tokens import VIRTUAL_TOKENS
from glmtune.model import fingerprint
from glmtune.model.added_tokens import Pieces
from glmtune.model.files import check_path
from glmtune.recipe.methods import AdapterSection
from glmtune.template.base import Template


class Method(Protocol):
    """One way of tuning: what is trained, and how it is saved and loaded.

    Attributes:
        what: what is trained, for messages, such as "adapter".
        is_difference: whether it adds to a frozen base; if not, a complete model is saved.
    """

    @property
    def what(self) -> str: ...  # noqa: D102  # above

    @property
    def is_difference(self) -> bool: ...  # noqa: D102

    def takes(self, section: AdapterSection) -> bool:
        """Whether a section of the recipe asks for this method."""

    def is_attached(self, model: Any) -> bool:
        """Whether this method attached what is trained of a model."""

    def check_fits(self, section: AdapterSection, name: str) -> None:
        """Refuse a type of model, by the configuration of a folder or hub id."""

    def attach(self, model: nn.Module, section: AdapterSection) -> Any:
        """Make a model ready for training: what is trained requires a gradient."""

    def save(
        self,
        model: Any,
        folder: Path,
        template: Template,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write what was trained to a folder; `state` holds the gathered tensors of shards."""

    def restore(self, folder: Path, model: Any) -> None:
        """Restore what `save` wrote into the model in memory, to continue training it."""

    def load(self, model: nn.Module, folder: Path) -> Any:
        """Add what was saved to its base model, to use it."""

    def as_saved(self, model: Any, folder: Path) -> AbstractContextManager[Any]:
        """Return a context with a model that answers with what is on disk."""

    def check_tensors(self, model: Any, folder: Path) -> None:
        """Compare saved tensors with those in memory, where equal logits do not show as much."""

    def is_folder(self, folder: Path) -> bool:
        """Whether a folder holds what this method saved."""

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that is incomplete or damaged."""

    def base_name(self, folder: Path) -> str:
        """Return the base that a folder names as what it was trained on; "" if it names none."""

    def weight_files(self, folder: Path) -> list[Path]:
        """List the files that hold the weights."""

    def digest(self, folder: Path) -> str:
        """Digest every file of a folder that decides answers: weights and configuration."""


# The first that accepts is used: P-Tuning v2 and peft's folders before that of a complete model.
METHODS: tuple[Method, ...] = (PTUNING_V2, VIRTUAL_TOKENS, PEFT_ADAPTER, FULL_MODEL)


def method_for(section: AdapterSection) -> Method:
    """Return the method that a section of the recipe asks for."""
    return next(method for method in METHODS if method.takes(section))


def method_of(model: Any) -> Method:
    """Return the method that attached what is trained of a model."""
    return next(method for method in METHODS if method.is_attached(model))


def method_in(folder: Path) -> Method:
    """Return the method that wrote a folder; unknown folders are taken for adapters of peft.

    Raises:
        CheckpointError: no folder can have this name.
    """
    check_path(folder)
    return next((method for method in METHODS if method.is_folder(folder)), PEFT_ADAPTER)


def _adapter_method_in(folder: Path) -> Method:
    """Return the method that wrote an adapter folder, which it checks."""
    found = method_in(folder)
    adapter = found if found.is_difference else PEFT_ADAPTER  # which says what is missing
    adapter.check_folder(folder)
    return adapter


def check_fits(section: AdapterSection, name: str) -> None:
    """Refuse a method that does not support a type of model, before any weight is read.

    Args:
        section: names the method.
        name: folder or hub id of the model.

    Raises:
        RecipeError: names the method to use instead.
    """
    method_for(section).check_fits(section, name)


def attach(model: nn.Module, section: AdapterSection, tokens: Pieces | None = None) -> Any:
    """Make a model ready for training by a method: what is trained requires a gradient.

    Args:
        model: the base.
        section: of the method.
        tokens: added tokens, which a LoRA trains beside it.

    Raises:
        RecipeError: the section does not fit the model.
    """
    if tokens:
        return PEFT_ADAPTER.attach(model, section, tokens)
    return method_for(section).attach(model, section)


def is_adapted(model: Any) -> bool:
    """Whether what is trained is a difference to a frozen base, not the model itself."""
    return method_of(model).is_difference


def save(
    model: Any, folder: Path, template: Template, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write what was trained, and how its prompts were built, to a folder.

    Args:
        model: that was trained.
        folder: is created.
        template: of the prompts.
        state: the tensors gathered from all ranks, if the model is sharded.
    """
    method_of(model).save(model, folder, template, state)


def restore(folder: Path, model: Any) -> None:
    """Restore what `save` wrote into the model in memory.

    Raises:
        CheckpointError: a tensor is missing or unexpected.
    """
    method_of(model).restore(folder, model)


def as_saved(model: Any, folder: Path) -> AbstractContextManager[Any]:
    """Return a context with a model that answers with what is on disk."""
    return method_of(model).as_saved(model, folder)


def count_parameters(model: Any) -> tuple[int, int]:
    """Count the trained numbers, and all numbers, of a model."""
    if hasattr(model, "get_nb_trainable_parameters"):  # peft counts quantized weights correctly
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    numbers = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(n for trained, n in numbers if trained), sum(n for _, n in numbers)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no complete model.

    Raises:
        CheckpointError: no folder can have this name.
    """
    check_path(folder)
    return PTUNING_V2.is_folder(folder) or adapter_folder.is_adapter(folder)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not an adapter, or that was half written.

    Raises:
        CheckpointError: names what is missing or damaged.
    """
    _adapter_method_in(folder)


def base_name(folder: Path) -> str:
    """Return the base that an adapter folder names; "" if it names none."""
    return method_in(folder).base_name(folder)


def load(model: nn.Module, folder: Path) -> Any:
    """Add a saved adapter to its base model, to use it.

    Raises:
        CheckpointError: the folder is not an adapter, is damaged, was edited, or belongs to another
            model.
    """
    adapter = _adapter_method_in(folder)
    adapter_folder.check_base(folder, fingerprint.of_model(model))
    return adapter.load(model, folder)


def digest(folder: Path) -> str:
    """Digest what decides the answers of an adapter or a complete model."""
    return method_in(folder).digest(folder)
