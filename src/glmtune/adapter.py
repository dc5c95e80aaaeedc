"""LoRA by peft: attach, save, load, merge, and prove that the file is what was trained.

An adapter folder is peft's own format, so any peft user can load it. Beside the weights lies
`glmtune.json`, which says how prompts were built when the adapter was trained; chatting with
another template is refused, since it is the commonest way to make a good adapter look bad.
"""

import copy
import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import glmtune
from glmtune import methods
from glmtune.alive import some
from glmtune.arithmetic import half_input_product, takes_half_inputs
from glmtune.data.batches import MicroBatch
from glmtune.errors import CheckpointError, RecipeError, TemplateError, TrainingError
from glmtune.files import write_atomically
from glmtune.int8 import Int8Linear
from glmtune.recipe import LoraSection, PeftSection
from glmtune.template import Template

logger = logging.getLogger(__name__)

CARD = "glmtune.json"


def attach(model: nn.Module, section: PeftSection) -> Any:
    """Freeze a model and give it an adapter; the adapter's weights are float32.

    Raises:
        RecipeError: the section names something that the model does not have.
    """
    from peft import get_peft_model

    methods.check_names(model, section)
    takes_from_base = isinstance(section, LoraSection) and section.takes_from_base
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and takes_from_base]
    weights: dict[nn.Module, Tensor] = {module: module.weight.data for module in linear}
    try:
        model_type: Any = model.config.model_type  # type: ignore[union-attr]
        adapted = get_peft_model(model, methods.config_of(section, model_type))
    except ValueError as error:
        raise RecipeError(
            f"adapter: {error} The model's linear layers are "
            f"{', '.join(methods.linear_layers(model))}; name some of them in "
            "adapter.target_modules."
        ) from None
    if section.name_or_path is not None:
        _go_on_with(Path(section.name_or_path), adapted)
    if not isinstance(section, LoraSection):
        return adapted
    methods.check_patterns(section, [name for name, _ in adapted_layers(adapted)])
    _keep_inputs_as_they_are(adapted)
    if section.takes_from_base:
        _give_back(adapted, weights)
    return adapted


def _keep_inputs_as_they_are(model: Any) -> None:
    """Spare plain LoRA layers the float32 copy of their input, which they keep for the gradient."""
    for _, layer in adapted_layers(model):
        for name, lora_a in getattr(layer, "lora_A", {}).items():
            is_plain = type(lora_a) is nn.Linear and name not in layer.lora_variant
            if is_plain and isinstance(layer.lora_dropout[name], nn.Identity):
                layer.lora_A[name] = takes_half_inputs(lora_a)
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
    stored, ours = peft_config(folder), model.peft_config["default"]
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


# PiSSA and OLoRA take what A and B begin with out of the base's weights. In half precision what is
# left would be rounded, and learned upon. So the weights stay as they are, and the beginning is
# taken out of the update: BA - B0 A0 is a LoRA of twice the rank, whose first half is trained, and
# which is saved as such.
#
#     A = [A ]    B = [B, -B0]
#         [A0]
initial_adapters: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


class _BegunA(nn.Linear):
    """A of a difference: what is trained, and below it what it began with."""

    begun: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., 2 rank)."""
        return half_input_product(input, torch.cat((self.weight, self.begun)))


class _BegunB(nn.Linear):
    """B of a difference: what is trained, and beside it what it began with, taken off."""

    begun: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., 2 rank) to (..., out)."""
        return F.linear(input, torch.cat((self.weight, -self.begun), dim=1))


def _give_back(model: Any, weights: Mapping[nn.Module, Tensor]) -> None:
    """Let a model have the weights that peft took its adapter's beginning out of.

    Args:
        model: the peft model.
        weights: as they were, by layer. peft makes new ones, but for OLoRA in float32.
    """
    initial_adapters[model] = {
        name: tensor.detach().clone() for name, tensor in model.named_parameters() if _is_lora(name)
    }
    for _, layer in adapted_layers(model):
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        base, weight = layer.get_base_layer(), weights[layer.get_base_layer()]
        if base.weight.data_ptr() == weight.data_ptr():
            weight += layer.scaling["default"] * (b.weight.data @ a.weight.data)
        base.weight.data = weight
        for sides, kind in ((layer.lora_A, _BegunA), (layer.lora_B, _BegunB)):
            side = sides["default"]
            twin = kind(side.in_features, side.out_features, bias=False, device="meta")
            twin.weight = side.weight
            twin.register_buffer("begun", side.weight.detach().clone(), persistent=False)
            sides["default"] = twin.train(side.training)
        if isinstance(layer.lora_dropout["default"], nn.Identity):
            layer.cast_input_dtype_enabled = False


@contextmanager
def _as_one_difference(model: Any) -> Iterator[None]:
    """Let an adapter with a beginning be the plain one of twice the rank while it is merged."""
    begun = [layer for _, layer in adapted_layers(model) if model in initial_adapters]
    trained = [(layer.lora_A["default"], layer.lora_B["default"]) for layer in begun]
    for layer, (a, b) in zip(begun, trained, strict=True):
        for sides, whole in (
            (layer.lora_A, torch.cat((a.weight, a.begun))),
            (layer.lora_B, torch.cat((b.weight, -b.begun), dim=1)),
        ):
            plain = nn.Linear(whole.size(1), whole.size(0), bias=False, device="meta")
            plain.weight = nn.Parameter(whole.detach(), requires_grad=False)
            sides["default"] = plain
    try:
        yield
    finally:
        for layer, (a, b) in zip(begun, trained, strict=True):
            layer.lora_A["default"], layer.lora_B["default"] = a, b


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _as_difference(
    trained: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give the state of a model whose adapter is the difference to its original base."""
    state = dict(trained)
    for name, begun in initial.items():
        if ".lora_A." in name:
            state[name] = torch.cat((state[name], begun), dim=0)  # (2 rank, in)
        else:
            state[name] = torch.cat((state[name], -begun), dim=1)  # (out, 2 rank)
    return state


def _doubled(config: Any) -> Any:
    """Give the configuration of the difference: twice the rank, and the same scale."""
    doubled = copy.deepcopy(config)
    factor = 2**0.5 if config.use_rslora else 2  # the scale is alpha / sqrt(r), or alpha / r
    doubled.r = 2 * config.r
    doubled.lora_alpha = factor * config.lora_alpha
    doubled.rank_pattern = {key: 2 * r for key, r in config.rank_pattern.items()}
    doubled.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}
    doubled.init_lora_weights = True
    doubled.inference_mode = True
    return doubled


def _first_half(
    folder: Path, tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Take what is trained out of a saved difference.

    Raises:
        CheckpointError: its second half is not what this model begins with.
    """
    halves = dict(tensors)
    for name, begun in initial.items():
        key = name.replace(".default.", ".")
        dim, sign = (0, 1) if ".lora_A." in name else (1, -1)
        trained, stored = tensors[key].chunk(2, dim=dim)
        if not torch.equal(stored, sign * begun.to(stored.device)):
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise CheckpointError(
                f"{folder}: its adapter begins with another part of the weights of {layer}. "
                "The same weights can be taken apart a little differently on another machine, or "
                "with other numbers of threads; go on where the run was begun."
            )
        halves[key] = trained.contiguous()
    return halves


def adapted_layers(model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, Any]]:
    """Go through the layers that carry an adapter, with their names in the base model."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.lora_B:
            yield name.removeprefix("base_model.model."), module


@dataclass(frozen=True, slots=True)
class Card:
    """What an adapter folder says of the run that made it."""

    template: dict[str, Any]
    fingerprint: str
    version: str = glmtune.__version__


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
        state = _as_difference(state or model.state_dict(), initial)
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
    if initial is not None:
        _doubled(model.peft_config["default"]).save_pretrained(str(folder))
    write_card(folder, template)


def write_card(folder: Path, template: Template) -> None:
    """Write beside the weights how their prompts were built."""
    card = {
        "glmtune_version": glmtune.__version__,
        "template": dict(template.description),
        "template_fingerprint": template.fingerprint,
    }
    write_atomically(folder / CARD, json.dumps(card, ensure_ascii=False, indent=2) + "\n")


def load_card(folder: Path) -> Card | None:
    """Read how an adapter's prompts were built; None for an adapter made elsewhere."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Card(fields["template"], fields["template_fingerprint"], fields["glmtune_version"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected the JSON that glmtune wrote, but {error!r}. "
            "Restore the file, or delete it to use the adapter without the template check."
        ) from None


def check_template(folder: Path, template: Template) -> None:
    """Refuse to use an adapter with prompts that it was not trained on.

    Raises:
        TemplateError: says both templates and how to go on.
    """
    card = load_card(folder)
    if card is not None and card.fingerprint != template.fingerprint:
        raise TemplateError(
            f"{folder} was trained with the template {_describe(card.template)} "
            f"({card.fingerprint[:12]}), but this would use {_describe(template.description)} "
            f"({template.fingerprint[:12]}). Use the same layout and tokenizer, or, "
            "if the difference is meant, pass --any-template to answer with it, or delete the "
            f"{CARD} of a copy to train on."
        )


def _describe(template: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in template.items())


def load(model: nn.Module, folder: str | Path, *, is_trainable: bool = False) -> Any:
    """Put a saved adapter over its base model.

    Raises:
        CheckpointError: the folder is not an adapter, is damaged, or belongs to another model.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(folder)
    check_folder(folder)
    config = peft_config(folder)
    if config.is_prompt_learning:
        raise CheckpointError(
            f"{folder}: an adapter by {config.peft_type.value} is loaded by `glmtune.tuning.load`."
        )
    _, stored = read_tensors(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
        try:
            loaded = PeftModel.from_pretrained(
                model, str(folder), is_trainable=is_trainable, config=config
            )
            named = _by_peft_names(stored)
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


def peft_config(folder: Path) -> Any:
    """Read the configuration of an adapter that any release of peft, or ms-swift, has written.

    A key that this peft does not have is dropped, and the log says so.

    Raises:
        CheckpointError: it is of no method that this peft has.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    stored = read_config(folder)
    method = stored.get("peft_type")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(method))  # type: ignore[call-overload]
    if kind is None:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: peft_type is {method!r}, which the installed peft "
            f"{version('peft')} does not have. Install the peft that the adapter was made with."
        )
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(stored.keys() - known)
    if off := [key for key in unknown if not stored[key]]:
        logger.info("%s: left out what this peft does not have: %s", folder, ", ".join(off))
    for key in (key for key in unknown if stored[key]):
        logger.warning(
            "%s: %s=%r is left out, since peft %s does not have it. If answers look wrong, that "
            "may be why.",
            *(folder, key, stored[key], version("peft")),
        )
    try:
        return kind(**{key: value for key, value in stored.items() if key in known})
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: peft {version('peft')} does not take it: {error}"
        ) from None


def _by_peft_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names that peft saves; scripts of old and ms-swift 1 save others.

    base_model.model.LAYER.lora_A.weight           peft
    base_model.model.LAYER.lora_A.default.weight   named_parameters() of a peft model
    LAYER.lora_A.default.weight                    ms-swift 1
    """
    named = {re.sub(r"(\.lora_[^.]+)\.default\.", r"\1.", k): v for k, v in tensors.items()}
    return {
        name if name.startswith("base_model.") else f"base_model.model.{name}": tensor
        for name, tensor in named.items()
    }


def check_folder(folder: Path) -> None:
    """Refuse what is no adapter folder, or one that was half written.

    Raises:
        CheckpointError: says what is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: there is no such adapter folder. `glmtune train` makes one in output.dir."
        )
    if not (folder / "adapter_config.json").is_file():
        hint = ""
        if (folder / "config.json").is_file():
            hint = " It holds a whole model: give it as MODEL instead of --adapter."
        elif (folder / "default" / "adapter_config.json").is_file():  # ms-swift 1
            hint = f" There is one in {folder / 'default'}: give that."
        elif checkpoints := sorted(folder.glob("checkpoint-*"), key=_step):
            hint = f" The run did not finish; try {checkpoints[-1]}."
        raise CheckpointError(f"{folder}: there is no adapter_config.json in it.{hint}")
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        try:
            with safe_open(str(weights), framework="pt") as file:
                file.keys()
        except SafetensorError as error:
            raise CheckpointError(
                f"{weights}: damaged or half written ({error}). Use an earlier checkpoint."
            ) from None
    elif not (folder / "adapter_model.bin").is_file():
        raise CheckpointError(f"{folder}: there is no adapter_model.safetensors in it.")


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Read peft's own description of an adapter.

    Raises:
        CheckpointError: it is not the JSON that peft writes.
    """
    return read_json(folder / "adapter_config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        CheckpointError: it is no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object, but {error}. Restore the file."
        ) from None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, got a {type(config).__name__}. Restore the file."
        )
    return config


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights of an adapter, and say from which file.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if file.is_file():
        return file, load_file(str(file))
    file = folder / "adapter_model.bin"
    try:
        return file, torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common base of what a damaged file raises
        raise CheckpointError(
            f"{file}: damaged, half written, or not plain weights ({error}). Use an earlier one."
        ) from None


def restore(folder: Path, model: Any) -> None:
    """Put the weights of a saved adapter into the adapter in memory.

    Raises:
        CheckpointError: a tensor is missing or was not expected.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    _, stored = read_tensors(folder)
    tensors = _by_peft_names(stored)
    initial = initial_adapters.get(model)
    if initial is not None:
        tensors = _first_half(folder, tensors, initial)
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
    trained = logits(model, probe)
    with _loaded_beside(model, folder):
        saved = logits(model, probe)
    difference = compare_logits(folder, "the adapter gives", trained, saved)
    _check_tensors(model, folder)
    return difference


def compare_logits(folder: Path, gives: str, trained: Tensor, saved: Tensor) -> float:
    """Give the largest difference between two logits.

    Args:
        folder: that was read.
        gives: what it holds, and a verb.
        trained: logits of the trained model.
        saved: logits of what was read, of the same shape.

    Raises:
        TrainingError: the logits differ.
    """
    difference = (trained - saved).abs().max().item()
    if difference != 0:  # NaN is no proof either
        raise TrainingError(
            f"{folder}: reloaded from disk {gives} other logits (by {difference:.3g}). "
            "The file is not what was trained; keep the last checkpoint and report this."
        )
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
        stored = _first_half(folder, stored, initial_adapters[model])
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    _refuse_other_tensors(folder, expected, stored)
    for name, tensor in expected.items():
        if not torch.equal(tensor, stored[name].to(tensor.device)):
            raise TrainingError(
                f"{folder}: read back from disk, {name} is not what was trained. "
                "Keep the last checkpoint and report this."
            )


def logits(model: Any, probe: MicroBatch) -> Tensor:
    """Score every position of a probe: (batch, seq, vocab), float32."""
    scores: Tensor = model(**probe.inputs(), use_cache=False).logits
    return scores.float()


def merge(model: Any) -> Any:
    """Add the adapter's update into the base weights; the result is a plain model.

    Raises:
        CheckpointError: the base is packed into few bits, which the update would not survive; or
            what was learned stands before the text and is no part of a weight.
    """
    if not hasattr(model, "merge_and_unload"):
        raise CheckpointError(
            "what was learned are virtual tokens before every text, which no weight can take up. "
            "Use the adapter beside its base."
        )
    if _is_packed(model):
        raise CheckpointError(
            "the base is quantized, and adding the update to its few bits would lose most of it. "
            "Load the base in half precision, then the adapter, and merge those."
        )
    with _as_one_difference(model):
        return model.merge_and_unload(safe_merge=True)


def _is_packed(model: Any) -> bool:
    in_int8 = any(isinstance(module, Int8Linear) for module in model.modules())
    return in_int8 or getattr(model, "is_quantized", False)


def can_merge(model: Any) -> bool:
    """Whether the update can be added into the base: not into few bits, and not a prefix."""
    return hasattr(model, "merge_adapter") and not _is_packed(model)


def merge_in_place(model: Any) -> None:
    """Add the update into the base weights layer by layer, and keep the adapter beside them.

    No more than one layer's weight is held twice. In half precision this cannot be undone
    exactly, so it comes after all else that needs the base.
    """
    with _as_one_difference(model):
        model.merge_adapter(safe_merge=True)
