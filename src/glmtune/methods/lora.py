"""Adapters by peft inside the layers (LoRA, QLoRA, IA3, VeRA, OFT): attach, save, load, restore.

An adapter folder is peft's own format, so any user of peft can load it. `glmtune.json` beside the
weights records how prompts were built when the adapter was trained. Chatting with another template
is refused, since it is the most common way to make a good adapter look bad.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import CheckpointError, RecipeError, TrainingError, some
from glmtune.kernels.half_precision import HalfInputLinear
from glmtune.kernels.master_weights import keep_masters
from glmtune.methods import adapter_folder, peft_config, token_rows
from glmtune.methods.adapter_folder import (
    by_peft_names,
    check_folder,
    read_peft_config,
    read_tensors,
    write_card,
)
from glmtune.methods.half_lora import use_half_updates
from glmtune.methods.layers import adapted_layers
from glmtune.methods.pissa import (
    as_difference,
    doubled_config,
    initial_adapters,
    restore_base_weights,
    trained_half,
)
from glmtune.model import fingerprint
from glmtune.model.added_tokens import Pieces
from glmtune.model.files import first_lines
from glmtune.recipe.methods import AdapterSection, LoraSection, PeftSection
from glmtune.template.base import Template

# Besides its tensors, these keys of the recipe and of peft decide what an adapter computes.
MUST_MATCH = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "feedforward_modules",
    "d_initial",
    "projection_prng_key",
    "oft_block_size",
)


class PeftAdapter:
    """The method of tuning that adds small trained matrices or scales to layers, by peft."""

    what = "adapter"
    is_difference = True

    def takes(self, section: AdapterSection) -> bool:
        """Whether a section of the recipe asks for this method."""
        return isinstance(section, PeftSection)

    def is_attached(self, model: Any) -> bool:
        """Whether this method attached what is trained of a model."""
        from peft import PeftModel

        return isinstance(model, PeftModel) and not model.peft_config["default"].is_prompt_learning

    def check_fits(self, section: AdapterSection, name: str) -> None:
        """Accept any kind of model; names are checked with the model itself."""

    def attach(
        self, model: nn.Module, section: AdapterSection, tokens: Pieces | None = None
    ) -> Any:
        """Freeze a model and add an adapter to it; whatever is trained is float32.

        Args:
            model: the base.
            section: describes the adapter.
            tokens: added tokens, whose rows are trained from those of their pieces.

        Returns:
            The peft model.

        Raises:
            RecipeError: the section names something that the model does not have.
        """
        from peft import get_peft_model

        assert isinstance(section, PeftSection)
        peft_config.check_names(model, section)
        takes_from_base = isinstance(section, LoraSection) and section.takes_from_base
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and takes_from_base]
        weights: dict[nn.Module, Tensor] = {module: module.weight.data for module in linear}
        try:
            model_type: Any = model.config.model_type  # type: ignore[union-attr]
            rows = token_rows.named(model, list(tokens or ()))
            adapted = get_peft_model(model, peft_config.config_of(section, model_type, rows))
        except ValueError as error:
            raise RecipeError(
                f"adapter: {error} The model's linear layers are "
                f"{', '.join(peft_config.linear_layers(model))}; name some of them in "
                "adapter.target_modules."
            ) from None
        token_rows.start(adapted, tokens or {})
        keep_masters(adapted)  # of `modules_to_save`, `bias` and added tokens
        if section.name_or_path is not None:
            self._start_from(Path(section.name_or_path), adapted)
        if not isinstance(section, LoraSection):
            return adapted
        peft_config.check_patterns(section, [name for name, _ in adapted_layers(adapted)])
        _keep_half_inputs(adapted)
        if section.takes_from_base:
            restore_base_weights(adapted, weights)
        return adapted

    def _start_from(self, folder: Path, model: Any) -> None:
        """Initialize a new adapter with the weights of a saved one.

        Raises:
            RecipeError: the recipe describes another adapter than the folder holds.
            CheckpointError: the folder holds no adapter, or one of another model.
        """
        check_folder(folder)
        adapter_folder.check_base(folder, fingerprint.of_model(model))
        stored, ours = read_peft_config(folder), model.peft_config["default"]
        if stored.peft_type != ours.peft_type:
            raise RecipeError(
                f"adapter.name_or_path={folder} holds an adapter by {stored.peft_type.value}, and "
                f"the recipe asks for {ours.peft_type.value}. Set adapter.method."
            )
        others = {
            key: getattr(stored, key)
            for key in MUST_MATCH
            if getattr(stored, key, None) != getattr(ours, key, None)
        }
        if others:
            wanted = " ".join(f"adapter.{key}={value}" for key, value in others.items())
            raise RecipeError(
                f"adapter.name_or_path={folder} was made with other settings than the recipe has. "
                f"To continue training it, set {wanted}."
            )
        self.restore(folder, model)

    def save(
        self,
        model: Any,
        folder: Path,
        template: Template,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the adapter in peft's format, and how its prompts were built, to a folder.

        Args:
            model: the peft model.
            folder: is created.
            template: of the prompts.
            state: the adapter's tensors, by the names of `model.state_dict()`; None reads them
                from the model.
        """
        folder.mkdir(parents=True, exist_ok=True)
        initial = initial_adapters.get(model)
        if initial is not None:
            state = as_difference(state or model.state_dict(), initial)
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
        if initial is not None:
            doubled_config(model.peft_config["default"]).save_pretrained(str(folder))
        write_card(folder, template, model)

    def load(self, model: nn.Module, folder: str | Path, config: Any = None) -> Any:
        """Add a saved adapter to its base model, to use it.

        Args:
            model: the base.
            folder: of the adapter.
            config: peft's, if not as the folder has it.

        Raises:
            CheckpointError: the folder is not an adapter, is damaged, or belongs to another model.
        """
        from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

        folder = Path(folder)
        check_folder(folder)
        config = config or read_peft_config(folder)
        if config.is_prompt_learning:
            raise CheckpointError(
                f"{folder}: an adapter by {config.peft_type.value} is loaded by "
                "`glmtune.methods.method.load`."
            )
        _, stored = read_tensors(folder)
        if getattr(config, "trainable_token_indices", None):
            token_rows.make_plain(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
            try:
                loaded = PeftModel.from_pretrained(model, str(folder), config=config)
                named = by_peft_names(stored)
                if named.keys() != stored.keys():  # peft has ignored names that are not its own
                    set_peft_model_state_dict(loaded, named)
            except Exception as error:  # peft has no common class, and wraps little
                raise CheckpointError(
                    f"{folder}: the adapter does not fit this model: {first_lines(error)} "
                    "Check that it was trained on the same base."
                ) from error
        expected = get_peft_model_state_dict(loaded, save_embedding_layers=False)
        _refuse_other_tensors(folder, expected, named)
        return loaded

    def restore(self, folder: Path, model: Any) -> None:
        """Restore the weights of the adapter in memory from a saved one.

        Raises:
            CheckpointError: a tensor is missing or unexpected.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        _, stored = read_tensors(folder)
        tensors = by_peft_names(stored)
        initial = initial_adapters.get(model)
        if initial is not None:
            tensors = trained_half(folder, tensors, initial)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
        _refuse_other_tensors(folder, expected, tensors)
        set_peft_model_state_dict(model, tensors)

    @contextmanager
    def as_saved(self, model: Any, folder: Path) -> Iterator[Any]:
        """Temporarily use the adapter on disk instead of the trained one."""
        from peft import PeftConfig, set_peft_model_state_dict

        config: Any = PeftConfig.from_pretrained(str(folder))
        if hasattr(config, "bias"):
            config.bias = "none"  # trained biases are the base's own, which exist once
        model.add_adapter("saved", config)
        _keep_half_inputs(model)  # or the new adapter would get half precision and want float32
        try:
            set_peft_model_state_dict(model, read_tensors(folder)[1], adapter_name="saved")
            model.set_adapter("saved")
            model.eval()  # the dropout of the new adapter is in training mode
            yield model
        finally:
            model.set_adapter("default")
            model.delete_adapter("saved")

    def check_tensors(self, model: Any, folder: Path) -> None:
        """Compare every tensor of a saved adapter with the one in memory.

        Raises:
            CheckpointError: a tensor is missing or unexpected.
            TrainingError: a number differs.
        """
        from peft import get_peft_model_state_dict

        _, stored = read_tensors(folder)
        if model in initial_adapters:
            stored = trained_half(folder, stored, initial_adapters[model])
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
        _refuse_other_tensors(folder, expected, stored)
        for name, tensor in expected.items():
            if not torch.equal(tensor, stored[name].to(tensor.device)):
                raise TrainingError(
                    f"{folder}: read back from disk, {name} is not what was trained. "
                    "Keep the last checkpoint and report this."
                )

    def is_folder(self, folder: Path) -> bool:
        """Whether a folder holds an adapter of peft."""
        return (folder / adapter_folder.CONFIG).is_file()

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that is not an adapter, or that was half written.

        Raises:
            CheckpointError: names what is missing or damaged.
        """
        check_folder(folder)

    def base_name(self, folder: Path) -> str:
        """Return the base that an adapter was trained on; "" if the folder does not name it."""
        return str(adapter_folder.read_config(folder).get("base_model_name_or_path") or "")

    def weight_files(self, folder: Path) -> list[Path]:
        """List the files that hold the weights."""
        return adapter_folder.weight_files(folder)

    def digest(self, folder: Path) -> str:
        """Digest what decides the answers: the weights and peft's configuration."""
        return adapter_folder.digest_of(folder)


def _keep_half_inputs(model: Any) -> None:
    """Avoid the float32 copy of the input that plain LoRA layers would keep for the gradient.

    On an accelerator all of the update is computed in 16 bits.
    """
    for _, layer in adapted_layers(model):
        use_half_updates(layer)
        for name, lora_a in getattr(layer, "lora_A", {}).items():
            is_plain = type(lora_a) is nn.Linear and name not in layer.lora_variant
            if is_plain and isinstance(layer.lora_dropout[name], nn.Identity):
                layer.lora_A[name] = HalfInputLinear.from_linear(lora_a)
                layer.cast_input_dtype_enabled = False


def _refuse_other_tensors(
    folder: Path, expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> None:
    """Refuse an adapter with missing or unexpected tensors, or tensors of another shape."""
    missing = sorted(expected.keys() - stored.keys())
    extra = sorted(stored.keys() - expected.keys())
    others = [
        f"{name} {tuple(stored[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    faults = []
    if missing:
        faults.append(f"lacks {len(missing)} tensors ({some(missing)})")
    if extra:
        faults.append(f"has {len(extra)} without a place here ({some(extra)})")
    if others:
        faults.append(f"has {len(others)} of another shape ({some(others)})")
    if faults:
        raise CheckpointError(
            f"{folder}: the adapter does not fit this model: it {' and '.join(faults)}. "
            "Check that it was trained on the same base, and that it was copied completely."
        )


PEFT_ADAPTER = PeftAdapter()
# `lora.attach(model, LoraSection(r=8))` reads well in a notebook.
attach, save, load, restore = (
    PEFT_ADAPTER.attach,
    PEFT_ADAPTER.save,
    PEFT_ADAPTER.load,
    PEFT_ADAPTER.restore,
)
