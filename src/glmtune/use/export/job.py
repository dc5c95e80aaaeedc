"""What is exported: a model, or an adapter and its base, opened before anything is written.

MODEL or ADAPTER -> base, adapter, template, tokenizer, configuration     no weights are read
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError
from glmtune.methods import method
from glmtune.methods.adapter_folder import CARD, check_base, load_card, write_card
from glmtune.model.chatglm.stock_files import write_stock_files
from glmtune.model.fingerprint import fingerprint
from glmtune.model.load import load_config, load_tokenizer
from glmtune.recipe.choices import LAYOUTS, Layout
from glmtune.template.base import Template
from glmtune.use.export.folder import check_space
from glmtune.use.export.shards import DEFAULT_SHARD, parse_size, write_shards
from glmtune.use.export.update import Merged, Survival, mergeable_config, merged_weights
from glmtune.use.export.weights import local_folder
from glmtune.use.open import base_of, open_template, tokenizer_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOCAL_PATH = re.compile(r"[/~.\\]|[A-Za-z]:")  # at the start of a name that is no hub id


@dataclass(frozen=True)
class Job:
    """What is exported.

    Attributes:
        base: folder of the complete model.
        base_name: of it, as it was given or as the adapter names it.
        adapter: folder of the adapter, None for a complete model.
        template: that builds the prompts.
        dtype: by torch's name, or "auto" for that of the base.
        max_shard_bytes: of a file of weights.
        quantize: the GGUF type of the matrices, such as q8_0; "" for that of `dtype`.
        is_layout_known: whether the folder records how prompts are built, or the user has said so.
    """

    base: Path
    base_name: str
    adapter: Path | None
    template: Template
    dtype: str = "auto"
    max_shard_bytes: int = parse_size(DEFAULT_SHARD)
    is_layout_known: bool = True
    quantize: str = ""

    @property
    def source(self) -> Path:
        """The folder that was tuned: of the adapter, or of the model."""
        return self.adapter or self.base

    @property
    def layout(self) -> Layout:
        """The layout of the prompts; "official" for a family with a chat template of its own."""
        named = self.template.description.get("layout")
        return next((layout for layout in LAYOUTS if layout == named), "official")

    @cached_property
    def config(self) -> Any:
        """The configuration of the base."""
        return load_config(self.base)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the base, with the tokens that the adapter added."""
        return load_tokenizer(tokenizer_folder(self.base, self.adapter))

    @property
    def torch_dtype(self) -> "torch.dtype | None":
        """The dtype of the result, None for that of each tensor of the base."""
        import torch

        named: dict[str, torch.dtype] = {
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
            "float32": torch.float32,
        }
        return named.get(self.dtype)

    def merged(self) -> Merged:
        """Prepare the tensors of the model with the adapter in it."""
        return merged_weights(self.base, self.adapter, self.torch_dtype)

    def write_weights(self, folder: Path, relay: Any = None) -> Survival:
        """Write the weights to shards.

        Args:
            folder: exists.
            relay: turns (name, tensor) pairs into those of another layout; None keeps the base's.

        Returns:
            What of the update survives in the dtype.
        """
        merged = self.merged()
        check_space(folder, merged.num_bytes())
        tensors: Iterator[tuple[str, Tensor]] = merged.tensors()
        write_shards(
            folder,
            tensors if relay is None else relay(tensors),
            self.max_shard_bytes,
            merged.num_bytes(),
        )
        return merged.survival

    def write_prompt_files(self, folder: Path) -> None:
        """Write the tokenizer and what ends an answer beside the weights."""
        if (settings := self.base / "generation_config.json").is_file():
            shutil.copyfile(settings, folder / settings.name)
        write_stock_files(folder, self.tokenizer, self.config, layout=self.layout)

    def write_card(self, folder: Path) -> None:
        """Record how prompts are built, if that is known; last, since it may hold checksums."""
        if self.is_layout_known:
            write_card(folder, self.template)


def open_job(
    source: str | Path,
    base: str | None = None,
    *,
    layout: Layout | None = None,
    dtype: str = "auto",
    max_shard_size: str = DEFAULT_SHARD,
    quantize: str = "",
) -> Job:
    """Open what is exported.

    Args:
        source: folder of an adapter, or folder or hub id of a complete model.
        base: of the adapter; None takes the one that the adapter names.
        layout: of the prompts; None takes that of the folder, or "official".
        dtype: of the result, "auto" for that of the base.
        max_shard_size: such as "2GB".
        quantize: a GGUF type, for the formats that have one.

    Raises:
        CheckpointError: a folder is missing or damaged, or the adapter is of another model.
    """
    max_shard_bytes = parse_size(max_shard_size)
    adapter = Path(source).expanduser()
    if not method.is_adapter(adapter):
        if base is not None:
            if adapter.is_dir() and not (adapter / "config.json").is_file():
                method.check_folder(adapter)  # says what is missing
            raise CheckpointError(
                f"{source} is a complete model and has no base. Leave out --base, or give the "
                "folder of an adapter."
            )
        folder, base_name, source_folder = local_folder(source), str(source), None
    else:
        mergeable_config(adapter)
        base_name = base or base_of(adapter, advice="Name it: --base MODEL.")
        folder, source_folder = local_folder(base_name), adapter
        check_base(adapter, fingerprint(folder))
    _, _, template = open_template(str(folder), source_folder, layout=layout, any_template=True)
    _refuse_other_prompts(source_folder or folder, base_name, template)
    is_known = layout is not None or ((source_folder or folder) / CARD).is_file()
    return Job(
        folder, base_name, source_folder, template, dtype, max_shard_bytes, is_known, quantize
    )


def _refuse_other_prompts(tuned: Path, base_name: str, template: Template) -> None:
    card = load_card(tuned)
    if card is not None and card.fingerprint != template.fingerprint:
        layout = card.template.get("layout")
        if layout != template.description.get("layout"):
            raise CheckpointError(
                f"{tuned}: it was trained on prompts in the layout {layout}, and another one was "
                "asked for. Leave out --layout."
            )
        raise CheckpointError(
            f"{tuned}: it was trained on prompts ({card.fingerprint[:12]}) that the tokenizer of "
            f"{base_name} does not build ({template.fingerprint[:12]}), so that is another model. "
            "Give the model that it was trained on: --base MODEL."
        )


def written_config(job: Job) -> dict[str, Any]:
    """Return config.json of the result: that of the base with its own keys, and the new dtype."""
    config: dict[str, Any] = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    if LOCAL_PATH.match(str(config.get("_name_or_path", ""))):
        if getattr(job.config, "rope_interpolation", None):
            config["rope_interpolation"] = True  # the name alone would have said so
        del config["_name_or_path"]
    if job.dtype != "auto":
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = job.dtype
    return config


def copy_code(job: Job, folder: Path) -> None:
    """Copy the code that `auto_map` names, for tools that run it; it is never run here."""
    named: set[str] = set()
    for file in ("config.json", "tokenizer_config.json"):
        path = job.base / file
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for value in (content.get("auto_map") or {}).values():
            texts = value if isinstance(value, list) else [value]
            named |= {str(text).split(".")[0] for text in texts if text and "--" not in str(text)}
    if not named:
        return
    for path in job.base.glob("*.py"):
        if path.stem in named | {"quantization"}:  # which modeling_chatglm.py imports
            shutil.copyfile(path, folder / path.name)


@contextmanager
def temporary_folder(near: Path) -> Iterator[Path]:
    """Yield a folder on the same disk as another, which is removed afterwards."""
    with TemporaryDirectory(prefix=f".{near.name}-", dir=near.parent) as name:
        yield Path(name)
