"""Tuning the weights themselves: all of them, or some; a complete model is saved.

The folder is a checkpoint in the layout of the one that was read, with the tokenizer and
`glmtune.json` beside it, so it is used like any model: `glmtune chat out/my-run`.

Weights are trained in float32. In bfloat16 an update below 1/256 of a weight is lost, and at a
fine-tuning learning rate that is most of them. `training.bf16` still computes in bfloat16.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glmtune.errors import CheckpointError, RecipeError
from glmtune.methods import digest
from glmtune.methods.adapter_folder import write_card
from glmtune.model.files import checked_name, weight_files
from glmtune.model.layers import decoder_layers
from glmtune.model.load import load_model
from glmtune.recipe.methods import AdapterSection, FreezeSection, FullSection, NoneSection
from glmtune.template.base import Template


class FullModel:
    """The methods that train weights of the model itself: `full`, `freeze`, and `none` at all."""

    what = "model"
    is_difference = False

    def takes(self, section: AdapterSection) -> bool:
        """Whether a section of the recipe asks for this method."""
        return isinstance(section, FullSection | FreezeSection | NoneSection)

    def is_attached(self, model: Any) -> bool:
        """Accept any model; the other methods are asked first."""
        return True

    def check_fits(self, section: AdapterSection, name: str) -> None:
        """Accept any kind of model; layers are checked with the model itself."""

    def attach(self, model: nn.Module, section: AdapterSection) -> Any:
        """Choose which weights are trained.

        Raises:
            RecipeError: the model has fewer layers, or no module of a given name.
        """
        model.requires_grad_(isinstance(section, FullSection))
        if isinstance(section, FreezeSection):
            for module in _chosen_modules(model, section):
                module.requires_grad_(True)
        return model

    def save(
        self,
        model: Any,
        folder: Path,
        template: Template,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the model, or the given tensors, and how its prompts were built, to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(folder), state_dict=None if state is None else dict(state))
        write_card(folder, template)

    def restore(self, folder: Path, model: Any) -> None:
        """Restore the weights of the model in memory from a saved one.

        Raises:
            CheckpointError: a tensor is missing, or has another shape.
        """
        model.zero_grad(set_to_none=True)  # frees memory for the second model
        model.load_state_dict(load_model(folder, dtype=model.dtype).state_dict())

    def load(self, model: nn.Module, folder: Path) -> Any:
        """Replace the weights of a model by saved ones, to use it.

        Raises:
            CheckpointError: a tensor is missing, or has another shape.
        """
        self.restore(folder, model)
        return model.requires_grad_(False)

    @contextmanager
    def as_saved(self, model: Any, folder: Path) -> Iterator[Any]:
        """Load the model on disk with the dtype, device and attention of the trained one."""
        yield load_model(
            folder,
            dtype=model.dtype,
            device_map={"": model.device} if model.device.type != "cpu" else None,
            attn_implementation=model.config._attn_implementation,
        )

    def check_tensors(self, model: Any, folder: Path) -> None:
        """Compare nothing besides logits, to which every tensor of a model contributes."""

    def is_folder(self, folder: Path) -> bool:
        """Whether a folder holds a complete model."""
        return (folder / "config.json").is_file()

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that does not hold a model.

        Raises:
            CheckpointError: names what is missing.
        """
        checked_name(folder)

    def base_name(self, folder: Path) -> str:
        """Return "": a complete model needs no base."""
        return ""

    def weight_files(self, folder: Path) -> list[Path]:
        """List the files that hold the weights."""
        return [file for file in weight_files(folder) if file.is_file()]

    def digest(self, folder: Path) -> str:
        """Digest what decides the answers: the weights, by samples, and config.json."""
        return digest.of_large_files([*self.weight_files(folder), folder / "config.json"])


def _chosen_modules(model: nn.Module, section: FreezeSection) -> list[nn.Module]:
    try:
        layers = decoder_layers(model) if section.trainable_layers else nn.ModuleList()
    except CheckpointError as error:
        raise RecipeError(
            f"adapter.trainable_layers cannot be used: {error} Name modules in "
            "adapter.trainable_modules instead."
        ) from error
    if section.trainable_layers > len(layers):
        raise RecipeError(
            f"adapter.trainable_layers is {section.trainable_layers}, but this model has "
            f"{len(layers)} layers. Give at most that many, or adapter.method=full."
        )
    chosen = list(layers[len(layers) - section.trainable_layers :])
    for wanted in section.trainable_modules:
        found = [m for name, m in model.named_modules() if f".{name}".endswith(f".{wanted}")]
        if not found:
            known = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()})
            raise RecipeError(
                f"adapter.trainable_modules names {wanted}, which this model does not have. Its "
                f"modules are {', '.join(n for n in known if n and not n.isdigit())}."
            )
        chosen += found
    return chosen


FULL_MODEL = FullModel()
