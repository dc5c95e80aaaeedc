"""LoRA by peft: attach, save, load, merge, and prove that the file is what was trained.

An adapter folder is peft's own format, so any peft user can load it. Beside the weights lies
`glmtune.json`, which says how prompts were built when the adapter was trained; chatting with
another template is refused, since it is the commonest way to make a good adapter look bad.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.data.batches import MicroBatch
from glmtune.errors import CheckpointError, RecipeError, TrainingError, some
from glmtune.kernels.half_precision import HalfInputLinear
from glmtune.methods import peft_config
from glmtune.methods.adapter_folder import (
    by_peft_names,
    check_folder,
    read_peft_config,
    read_tensors,
    write_card,
)
from glmtune.methods.layers import adapted_layers
from glmtune.methods.logits import compare_logits, logits_of
from glmtune.methods.pissa import (
    as_difference,
    doubled_config,
    initial_adapters,
    restore_base_weights,
    trained_half,
)
from glmtune.recipe.methods import LoraSection, PeftSection
from glmtune.template.base import Template


def attach(model: nn.Module, section: PeftSection) -> Any:
    """Freeze a model and give it an adapter; the adapter's weights are float32.

    Raises:
        RecipeError: the section names something that the model does not have.
    """
    from peft import get_peft_model

    peft_config.check_names(model, section)
    takes_from_base = isinstance(section, LoraSection) and section.takes_from_base
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and takes_from_base]
    weights: dict[nn.Module, Tensor] = {module: module.weight.data for module in linear}
    try:
        model_type: Any = model.config.model_type  # type: ignore[union-attr]
        adapted = get_peft_model(model, peft_config.config_of(section, model_type))
    except ValueError as error:
        raise RecipeError(
            f"adapter: {error} The model's linear layers are "
            f"{', '.join(peft_config.linear_layers(model))}; name some of them in "
            "adapter.target_modules."
        ) from None
    if section.name_or_path is not None:
        _go_on_with(Path(section.name_or_path), adapted)
    if not isinstance(section, LoraSection):
        return adapted
    peft_config.check_patterns(section, [name for name, _ in adapted_layers(adapted)])
    _keep_inputs_as_they_are(adapted)
    if section.takes_from_base:
        restore_base_weights(adapted, weights)
    return adapted


def _keep_inputs_as_they_are(model: Any) -> None:
    """Spare plain LoRA layers the float32 copy of their input, which they keep for the gradient."""
    for _, layer in adapted_layers(model):
        for name, lora_a in getattr(layer, "lora_A", {}).items():
            is_plain = type(lora_a) is nn.Linear and name not in layer.lora_variant
            if is_plain and isinstance(layer.lora_dropout[name], nn.Identity):
                layer.lora_A[name] = HalfInputLinear.from_linear(lora_a)
                layer.cast_input_dtype_enabled = False


# What an adapter computes depends on these besides its tensors; the names of the recipe and peft.
DECISIVE = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("feedforward_modules", "d_initial", "projection_prng_key", "oft_block_size"),
)


def _go_on_with(folder: Path, model: Any) -> None:
    """Let a new adapter begin with the weights of a saved one.

    Raises:
        RecipeError: the recipe describes another adapter than the folder holds.
        CheckpointError: the folder holds no adapter, or one of another model.
    """
    check_folder(folder)
    stored, ours = read_peft_config(folder), model.peft_config["default"]
    if stored.peft_type != ours.peft_type:
        raise RecipeError(
            f"adapter.name_or_path={folder} holds an adapter by {stored.peft_type.value}, and the "
            f"recipe asks for {ours.peft_type.value}. Set adapter.method."
        )
    others = {
        key: getattr(stored, key)
        for key in DECISIVE
        if getattr(stored, key, None) != getattr(ours, key, None)
    }
    if others:
        wanted = " ".join(f"adapter.{key}={value}" for key, value in others.items())
        raise RecipeError(
            f"adapter.name_or_path={folder} was made with other settings than the recipe has. "
            f"To go on with it, set {wanted}."
        )
    restore(folder, model)


def save(
    model: Any, folder: Path, template: Template, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter in peft's format, and how its prompts were built, into a folder.

    Args:
        model: the peft model.
        folder: is made.
        template: of the prompts.
        state: the adapter's tensors, by the names of `model.state_dict()`; None takes them there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    initial = initial_adapters.get(model)
    if initial is not None:
        state = as_difference(state or model.state_dict(), initial)
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
    if initial is not None:
        doubled_config(model.peft_config["default"]).save_pretrained(str(folder))
    write_card(folder, template)


def load(model: nn.Module, folder: str | Path, *, is_trainable: bool = False) -> Any:
    """Put a saved adapter over its base model.

    Raises:
        CheckpointError: the folder is not an adapter, is damaged, or belongs to another model.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(folder)
    check_folder(folder)
    config = read_peft_config(folder)
    if config.is_prompt_learning:
        raise CheckpointError(
            f"{folder}: an adapter by {config.peft_type.value} is loaded by "
            "`glmtune.methods.method.load`."
        )
    _, stored = read_tensors(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
        try:
            loaded = PeftModel.from_pretrained(
                model, str(folder), is_trainable=is_trainable, config=config
            )
            named = by_peft_names(stored)
            if named.keys() != stored.keys():  # peft has passed over the names that are not its
                set_peft_model_state_dict(loaded, named)
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise CheckpointError(
                f"{folder}: the adapter does not fit this model: {error} "
                "Check that it was trained on the same base."
            ) from error
    expected = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    _refuse_other_tensors(folder, expected, named)
    return loaded


def restore(folder: Path, model: Any) -> None:
    """Put the weights of a saved adapter into the adapter in memory.

    Raises:
        CheckpointError: a tensor is missing or was not expected.
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


def _refuse_other_tensors(
    folder: Path, expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> None:
    """Refuse an adapter with a tensor too few or too many."""
    missing, extra = (
        sorted(expected.keys() - stored.keys()),
        sorted(stored.keys() - expected.keys()),
    )
    others = [
        f"{name} {tuple(stored[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    told = [f"lacks {len(missing)} tensors ({some(missing)})"] if missing else []
    told += [f"has {len(extra)} without a place here ({some(extra)})"] if extra else []
    told += [f"has {len(others)} of another shape ({some(others)})"] if others else []
    if told:
        raise CheckpointError(
            f"{folder}: the adapter does not fit this model: it {' and '.join(told)}. "
            "Check that it was trained on the same base, and that it was copied whole."
        )


@torch.no_grad()
def check_saved(model: Any, folder: Path, probe: MicroBatch) -> float:
    """Prove that the adapter on disk is the adapter in memory.

    The saved adapter is loaded beside the trained one over the same base, and both give
    their logits for a probe.

    Args:
        model: the trained peft model.
        folder: where `save` wrote its adapter.
        probe: any rows.

    Returns:
        The largest difference between two logits; 0.0 is expected.

    Raises:
        TrainingError: the logits differ.
    """
    model.eval()
    trained = logits_of(model, probe)
    with _loaded_beside(model, folder):
        saved = logits_of(model, probe)
    difference = compare_logits(folder, "the adapter gives", trained, saved)
    _check_tensors(model, folder)
    return difference


@contextmanager
def as_saved(model: Any, folder: Path) -> Iterator[Any]:
    """Let the adapter on disk answer in place of the trained one."""
    with _loaded_beside(model, folder):
        yield model


@contextmanager
def _loaded_beside(model: Any, folder: Path) -> Iterator[None]:
    """Let a saved adapter take the place of the trained one for a while."""
    from peft import PeftConfig, set_peft_model_state_dict

    config: Any = PeftConfig.from_pretrained(str(folder))
    if hasattr(config, "bias"):
        config.bias = "none"  # trained biases are the base's own, which there is once
    model.add_adapter("saved", config)
    _keep_inputs_as_they_are(model)  # or the new one would want float32, and get half precision
    try:
        set_peft_model_state_dict(model, read_tensors(folder)[1], adapter_name="saved")
        model.set_adapter("saved")
        model.eval()  # its dropout is new
        yield
    finally:
        model.set_adapter("default")
        model.delete_adapter("saved")


def _check_tensors(model: Any, folder: Path) -> None:
    """Compare what is on disk with what is in memory, number by number."""
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
