"""Add an adapter to the weights of its base, one module after another, in float32.

    base tensor W  ->  float32  ->  peft merges this one layer  ->  dtype of the result  ->  writer

peft attaches the adapter to a hollow model, whose matrices have the right shapes and take no
memory. A module's own weights are read when it is its turn, merged by peft's own `merge`, so that
every method that peft can merge is merged as peft does, and dropped.

What of the update survives: a half-precision number cannot hold a change far below its last bit.
For each changed tensor the rounding error of W + dW is compared with dW.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import CheckpointError, some
from glmtune.methods import method
from glmtune.methods.adapter_folder import CONFIG, check_folder, read_peft_config
from glmtune.methods.lora import PEFT_ADAPTER
from glmtune.model.files import first_lines
from glmtune.model.load import load_shapes
from glmtune.use.export.weights import Weights

logger = logging.getLogger(__name__)

ROWS = 4096  # of a matrix, that are compared at once
ENOUGH = 0.75  # of an update; if less survives the dtype, the command warns
REPEATED_INITS = ("pissa", "olora")  # peft takes the same part of the base out again when it loads
UNREPEATABLE_INITS = ("pissa_niter", "corda", "loftq", "lora_ga")


@dataclass(slots=True)
class Survival:
    """How much of an update is left in the dtype that was written.

    Attributes:
        dtype: that was written.
        num_tensors: changed by the adapter.
        lost, whole: sums of squares of the rounding errors, and of the update.
        num_changed, num_numbers: numbers that differ from the base's, of all in these tensors.
        worst, worst_share: the tensor of which least survives, and how much.
    """

    dtype: torch.dtype
    num_tensors: int = 0
    lost: float = 0.0
    whole: float = 0.0
    num_changed: int = 0
    num_numbers: int = 0
    worst: str = ""
    worst_share: float = 1.0

    def add(self, name: str, base: Tensor, merged: Tensor, written: Tensor) -> None:
        """Count one tensor: of the base, merged in float32, and as written."""
        lost = whole = 0.0
        num_changed = 0
        parts = (torch.split(each, ROWS) for each in (base, merged, written))
        for before, exact, after in zip(*parts, strict=True):
            whole += (exact - before.float()).square_().sum().item()
            lost += (after.float() - exact).square_().sum().item()
            num_changed += int((after != before.to(after.dtype)).sum())
        if whole == 0:
            return
        self.num_tensors += 1
        self.lost += lost
        self.whole += whole
        self.num_changed += num_changed
        self.num_numbers += written.numel()
        share = _kept(lost, whole)
        if not self.worst or share < self.worst_share:
            self.worst, self.worst_share = name, share

    @property
    def share(self) -> float:
        """1 minus the relative rounding error of the update; 1 if there is none."""
        return _kept(self.lost, self.whole) if self.whole else 1.0

    def sentence(self) -> str:
        """Say what survives, for people."""
        dtype = str(self.dtype).removeprefix("torch.")
        if not self.num_tensors:
            return "the adapter changes no weight"
        changed = self.num_changed / self.num_numbers
        return (
            f"of the update, {self.share:.1%} survives in {dtype} ({self.num_tensors} tensors, "
            f"{changed:.1%} of their numbers changed; least in {self.worst}: "
            f"{self.worst_share:.1%})"
        )


def _kept(lost: float, whole: float) -> float:
    return max(0.0, 1 - math.sqrt(lost / whole))


@dataclass(slots=True)
class Merged:
    """The tensors of a base with an adapter merged into them, made one at a time.

    Attributes:
        weights: of the base.
        model: hollow, with the adapter attached by peft; None if there is no adapter.
        dtype: of the result; None keeps the dtype of each tensor.
        initialization: by which peft takes a part out of the base when it loads the adapter.
        survival: filled while tensors are made.
    """

    weights: Weights
    model: Any = None
    dtype: torch.dtype | None = None
    initialization: str = ""
    survival: Survival = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the count of what survives."""
        matrices = [each.dtype for each in self.weights.stored.values() if len(each.shape) > 1]
        self.survival = Survival(self.dtype or (matrices or [torch.float32])[0])

    def num_bytes(self) -> int:
        """Return the size of all tensors."""
        return sum(
            each.numel * self._target(each.dtype).itemsize for each in self.weights.stored.values()
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Make the tensors, by the names of the base and in the order of its files.

        Raises:
            CheckpointError: peft cannot merge a layer, or a number overflows in the dtype.
        """
        for path, names in self._modules().items():
            yield from self._of_module(path, names)

    def names(self) -> list[str]:
        """List the names of the tensors, in the order in which they are made."""
        return [name for names in self._modules().values() for name in names]

    def _modules(self) -> dict[str, list[str]]:
        modules: dict[str, list[str]] = {}
        for name in self.weights.stored:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        return modules

    def _of_module(self, path: str, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        base = {name.rpartition(".")[2]: self.weights.read(name) for name in names}
        module, is_saved = (None, False) if self.model is None else _find(self.model, path)
        if is_saved:
            merged = {leaf: getattr(module, leaf).detach() for leaf in base}
        elif _is_adapted(module):
            merged = self._merge(path, module, base)
        else:  # with `bias: all` a module without an adapter may have a trained bias
            merged = {leaf: _set_vector(module, leaf, tensor) for leaf, tensor in base.items()}
        for name, (leaf, tensor) in zip(names, base.items(), strict=True):
            written = self._cast(name, merged[leaf])
            if merged[leaf] is not tensor:
                self.survival.add(name, tensor, merged[leaf].float(), written)
            yield name, written

    def _merge(self, path: str, module: Any, base: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merge one layer with peft, over its own weights in float32, which are dropped again."""
        outer = getattr(module, "token_adapter", module)  # of single trained embeddings
        layer = outer.get_base_layer()
        for leaf, tensor in base.items():
            value = _set_vector(layer, leaf, tensor).float()
            setattr(layer, leaf, nn.Parameter(value, requires_grad=False))
        if self.initialization:
            _repeat_initialization(outer, self.initialization)
        try:
            while hasattr(outer, "merge"):
                outer.merge(safe_merge=True)
                outer = outer.base_layer
        except (ValueError, NotImplementedError, RuntimeError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{path}: peft cannot merge its adapter: {first_lines(error)} Use the adapter "
                "together with its base."
            ) from error
        merged = {leaf: getattr(outer, leaf).detach() for leaf in base}
        for leaf in base:
            setattr(outer, leaf, None)
        return merged

    def _target(self, stored: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and stored.is_floating_point else stored

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        written = tensor.to(self._target(self.weights.stored[name].dtype))
        if written.dtype != tensor.dtype and not written.isfinite().all():
            raise CheckpointError(
                f"{self.weights.folder}: numbers of {name} are not finite in "
                f"{str(written.dtype).removeprefix('torch.')} (the largest is "
                f"{tensor.abs().max().item():.3g}). Use --dtype bfloat16 or float32."
            )
        return written


def merged_weights(
    base: str | Path, adapter: Path | None, dtype: torch.dtype | None = None
) -> Merged:
    """Prepare the tensors of a model, or of a base with an adapter merged into it.

    Args:
        base: folder or hub id of a complete model.
        adapter: folder of an adapter, or None.
        dtype: of the result; None keeps that of each tensor of the base.

    Raises:
        CheckpointError: the base is quantized or damaged; or the adapter is, belongs to another
            model, or cannot be merged.
    """
    weights = Weights(base)
    if adapter is None:
        return Merged(weights, None, dtype)
    config = mergeable_config(adapter)
    merged = Merged(weights, None, dtype)
    if (init := getattr(config, "init_lora_weights", None)) in REPEATED_INITS:
        merged.initialization = str(init)
    if isinstance(init, str):
        config.init_lora_weights = True  # there is nothing in a hollow model to start from
    merged.model = PEFT_ADAPTER.load(_hollow(weights.folder), adapter, config)
    _refuse_elsewhere(adapter, merged)
    return merged


def mergeable_config(adapter: Path) -> Any:
    """Read peft's configuration of an adapter, refusing methods that are not part of any weight.

    Raises:
        CheckpointError: names the method and what to do instead.
    """
    way_out = f"Use it together with its base: glmtune chat MODEL --adapter {adapter}."
    if not method.method_in(adapter).is_folder(adapter):
        check_folder(adapter)  # says what is missing
    if not (adapter / CONFIG).is_file():
        raise CheckpointError(
            f"{adapter}: a P-Tuning v2 prefix is read before every text and cannot be merged into "
            f"weights. {way_out}"
        )
    check_folder(adapter)
    config = read_peft_config(adapter)
    kind = config.peft_type.value
    if config.is_prompt_learning:
        raise CheckpointError(
            f"{adapter}: virtual tokens ({kind}) are read before every text and cannot be merged "
            f"into weights. {way_out}"
        )
    init = str(getattr(config, "init_lora_weights", ""))
    if init.startswith(UNREPEATABLE_INITS):
        raise CheckpointError(
            f"{adapter}: it was initialized by {init}, which changes the base in a way that the "
            "folder does not record. Save it again with peft's "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        )
    if getattr(config, "layer_replication", None):
        raise CheckpointError(
            f"{adapter}: layer_replication makes a model of more layers than its base, which has "
            f"no place in the base's files. {way_out}"
        )
    return config


def _hollow(folder: Path) -> nn.Module:
    """Build a model on the CPU whose matrices take no memory, and whose vectors are NaN.

    A matrix repeats one number. NaN marks a vector that the adapter does not set.
    """
    model = load_shapes(folder, dtype=torch.float32)
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            is_vector = parameter.dim() == 1
            value = torch.full((1,), math.nan if is_vector else 0.0).expand(parameter.shape)
            value = value.clone() if is_vector else value
            setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    return model


def _find(model: Any, path: str) -> tuple[Any, bool]:
    """Find the module of the base at a path, wrapped by peft or not.

    Returns:
        The module, None if there is none, and whether it was trained and saved in full.
    """
    module: Any = model.get_base_model()
    is_saved = False
    for part in path.split("."):
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            return None, False
        if (saved := getattr(module, "modules_to_save", None)) is not None:
            module, is_saved = saved["default"], True
    return module, is_saved


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "token_adapter") or hasattr(module, "base_layer")


def _set_vector(module: Any, leaf: str, tensor: Tensor) -> Tensor:
    """Return the vector that the adapter has set, or the tensor of the base."""
    own = getattr(module, leaf, None)
    is_set = own is not None and own.dim() == 1 and not own.is_meta and not own.isnan().any()
    return own.detach() if own is not None and is_set else tensor


def _repeat_initialization(layer: Any, init: str) -> None:
    """Take out of the base what PiSSA and OLoRA start from, as peft does when it loads them.

    The trained matrices, which the initialization overwrites, are put back.
    """
    sides = layer.lora_A["default"], layer.lora_B["default"]
    trained = [side.weight.detach().clone() for side in sides]
    if init == "pissa":
        layer.pissa_init("default", init)
    else:
        layer.olora_init("default")
    for side, weight in zip(sides, trained, strict=True):
        side.weight.data = weight


def _refuse_elsewhere(adapter: Path, merged: Merged) -> None:
    """Refuse an adapter of modules that the files of the base hold under no such name."""
    model = merged.model.get_base_model()
    changed: list[str] = []
    for name, module in model.named_modules():
        is_inner = bool(changed) and name.startswith(f"{changed[-1]}.")
        if not is_inner and (_is_adapted(module) or hasattr(module, "modules_to_save")):
            changed.append(name)
    held = {name.rpartition(".")[0] for name in merged.weights.stored}
    if lost := [
        name for name in changed if not any(f"{path}.".startswith(f"{name}.") for path in held)
    ]:
        raise CheckpointError(
            f"{adapter}: it changes {some(lost)}, and {merged.weights.folder} has no tensor of "
            "this name (its embeddings may be tied). Merge it in memory instead: "
            "glmtune.use.export.merge in docs/adapters.md."
        )
