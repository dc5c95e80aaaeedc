"""The fingerprint of a base model: which network and which weights an adapter was trained over.

    config     what decides the logits: sizes, layernorm_epsilon, rope_ratio, ...
    weights    by layer: a digest of sampled numbers of each tensor, and their mean size

        transformer.encoder.layers.0    9f86d081 0.02154
        transformer.encoder.layers.1    60303ae2 0.02201

It is taken of numbers by the name of their tensor, as float32, not of files: a copy in `.bin`, or
in shards of another size, has the same fingerprint. In a copy of another dtype the digests differ
and the mean sizes stay. 12 GB take a fraction of a second: 12 KB of each tensor are read.

What is not sampled is not seen: a few numbers that changed in a large file may go unnoticed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from glmtune.errors import CheckpointError
from glmtune.files import sha256_of_text
from glmtune.model.chatglm.outline import DEFAULTS
from glmtune.model.config_file import read_config
from glmtune.model.files import locate, read_bin, weight_files

Floats = NDArray[np.float32]
Read = Callable[[int, int], Floats]
"""(first number, how many) -> numbers of one tensor."""

SAMPLE_NUMBERS = 1024  # read at the start, in the middle and at the end of every tensor
MAX_HEADER_BYTES = 100_000_000  # as in safetensors
CLOSE = 0.02  # relative difference of two mean sizes that rounding to half precision explains
_GROUP = re.compile(r"(.*?\.\d+)\.")
_DTYPES: Mapping[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

# Other names of the keys of ChatGLM's config.json.
_ALIASES = {
    "num_hidden_layers": "num_layers",
    "vocab_size": "padded_vocab_size",
    "intermediate_size": "ffn_hidden_size",
    "head_dim": "kv_channels",
    "rms_norm_eps": "layernorm_epsilon",
}
_CHATGLM_IGNORED = ("bos_token_id", "eos_token_id", "pad_token_id", "seq_length")
_IGNORED = re.compile(
    r"_.*|.*dtype|transformers_version|architectures|auto_map|use_cache|.*_token_id|.*dropout.*"
    r"|initializer_range|id2label|label2id|name_or_path|problem_type|return_dict|output_.*"
    r"|chunk_size_feed_forward|is_encoder_decoder|quantization_config|tie_word_embeddings"
)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Which network and which weights a folder holds.

    Attributes:
        config: the keys of config.json that decide the logits.
        dtype: of most of the weights, as stored.
        weights: by layer, the digest of sampled numbers and their mean size.
    """

    config: Mapping[str, Any]
    dtype: str
    weights: Mapping[str, str]

    @property
    def short(self) -> str:
        """Sixteen hexadecimal digits, equal for equal networks and weights."""
        text = json.dumps([dict(self.config), dict(self.weights)], sort_keys=True)
        return sha256_of_text(text)[:16]


_of_models: WeakKeyDictionary[Any, Fingerprint] = WeakKeyDictionary()


def remember(model: Any, found: Fingerprint | None) -> None:
    """Keep the fingerprint of what a model was loaded from, for `of_model`."""
    if found is not None:
        _of_models[model] = found


def fingerprint_of_name(name: str | Path) -> Fingerprint | None:
    """Take the fingerprint of a model by its name; None for a hub id that is not cached.

    Raises:
        CheckpointError: config.json or a weight file cannot be read.
    """
    folder = folder_of(name)
    return None if folder is None else fingerprint(folder)


def of_model(model: Any) -> Fingerprint | None:
    """Return the fingerprint of what a model was loaded from; None if it is not known."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return _of_models.get(base)


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint of a folder as sixteen hexadecimal digits.

    Raises:
        CheckpointError: config.json or a weight file cannot be read.
    """
    return fingerprint(folder).short


def folder_of(name: str | Path) -> Path | None:
    """Return the folder of a model by its name; of a hub id the cached one, None if there is none.

    Args:
        name: a folder, a hub id, or `nano`.
    """
    folder = Path(locate(name))
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(str(name), "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def fingerprint(folder: Path) -> Fingerprint:
    """Take the fingerprint of a model's folder.

    Raises:
        CheckpointError: config.json or a weight file cannot be read.
    """
    groups: dict[str, list[tuple[str, int, Read]]] = {}
    dtypes: dict[str, int] = {}
    for file in weight_files(folder):
        tensors = _safetensors(file) if file.suffix == ".safetensors" else _bin(file)
        for name, dtype, count, read in tensors:
            if name.endswith("inv_freq") or not count:
                continue  # a buffer that some files lack
            match = _GROUP.match(name)
            groups.setdefault(match[1] if match else name, []).append((name, count, read))
            dtypes[dtype] = dtypes.get(dtype, 0) + count
    return Fingerprint(
        config=_decisive(folder),
        dtype=max(dtypes, key=lambda dtype: dtypes[dtype], default=""),
        weights={name: _digest(members) for name, members in sorted(groups.items())},
    )


def _digest(members: list[tuple[str, int, Read]]) -> str:
    """Digest samples of the tensors of a layer, and take their mean size."""
    digest, sizes = hashlib.sha256(), []
    for name, count, read in sorted(members, key=lambda member: member[0]):
        digest.update(f"{name} {count}\n".encode())
        number = min(count, SAMPLE_NUMBERS)
        for first in sorted({0, (count - number) // 2, count - number}):
            numbers = read(first, number)
            digest.update(numbers.tobytes())
            sizes.append(float(np.mean(np.abs(numbers, dtype=np.float64))))
    return f"{digest.hexdigest()[:8]} {sum(sizes) / len(sizes):.4g}"


def _safetensors(file: Path) -> Iterator[tuple[str, str, int, Read]]:
    """Yield name, dtype, count and a reader of every tensor of a safetensors file.

    The file is the length of its header (8 bytes), the header (JSON) and the tensors, whose
    `data_offsets` count from the end of the header.
    """
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length:,} bytes")
            header = json.loads(content.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                first, end = entry["data_offsets"]
                dtype = entry["dtype"]
                kind = np.dtype(_DTYPES.get(dtype, "u1"))
                offset, count = 8 + length + first, (end - first) // kind.itemsize
                yield name, dtype, count, _reader(file, offset, kind, is_bfloat16=dtype == "BF16")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}. It is damaged or incomplete; copy it again."
        ) from None


def _reader(file: Path, offset: int, kind: np.dtype[Any], *, is_bfloat16: bool) -> Read:
    def read(first: int, number: int) -> Floats:
        try:
            with file.open("rb") as content:
                content.seek(offset + first * kind.itemsize)
                part = content.read(number * kind.itemsize)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}. Copy it again.") from None
        if len(part) < number * kind.itemsize:
            raise CheckpointError(
                f"{file} ({file.stat().st_size:,} bytes) ends before its last tensor. It is "
                "incomplete; copy it again."
            )
        stored = np.frombuffer(part, dtype=kind)
        if is_bfloat16:  # the upper half of a float32
            return (stored.astype("<u4") << 16).view("<f4")
        with np.errstate(over="ignore"):
            return stored.astype("<f4")

    return read


def _bin(file: Path) -> Iterator[tuple[str, str, int, Read]]:
    """Yield name, dtype, count and a reader of every tensor of a `.bin` file."""
    dtypes = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    for name, tensor in read_bin(file, mmap=True).items():
        numbers = tensor.detach().reshape(-1)

        def read(first: int, number: int, numbers: Any = numbers) -> Floats:
            taken: Floats = numbers[first : first + number].float().numpy()
            return taken

        torch_name = str(tensor.dtype).removeprefix("torch.")
        yield name, dtypes.get(torch_name, torch_name), tensor.numel(), read


def _decisive(folder: Path) -> dict[str, Any]:
    """Return the keys of config.json that decide the logits."""
    content = read_config(folder)
    if content.get("model_type") != "chatglm":
        from glmtune.model.load import load_config

        whole = json.loads(load_config(folder).to_json_string(use_diff=False))
        return {key: value for key, value in sorted(whole.items()) if not _IGNORED.fullmatch(key)}
    named = {_ALIASES.get(key, key): value for key, value in content.items()}
    decisive = {key: named.get(key, default) for key, default in DEFAULTS.items()}
    if not decisive["multi_query_attention"]:
        decisive.pop("multi_query_group_num")
    interpolates = named.get("rope_interpolation")
    published_as = str(content.get("_name_or_path", ""))
    return {
        **{key: value for key, value in decisive.items() if key not in _CHATGLM_IGNORED},
        "layernorm_epsilon": named.get("layernorm_epsilon", 1e-5),
        "rope_interpolation": bool(interpolates or "chatglm2-6b-32k" in published_as),
    }


# ---- two of them -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """How one model differs from another.

    Attributes:
        what: the difference, as the end of a sentence.
        is_rounding: whether another dtype explains all of it.
    """

    what: str
    is_rounding: bool


def compare(recorded: Fingerprint, found: Fingerprint) -> Difference | None:
    """Compare what an adapter was trained over with what it is given; None if they are equal.

    Keys and layers that only one of them has are not compared: a saved copy of tied weights lacks
    one of the two, and releases of transformers differ in what they write.
    """
    keys = [key for key in recorded.config if key in found.config]
    changed = [key for key in keys if recorded.config[key] != found.config[key]]
    if changed:
        named = [f"{k} {recorded.config[k]}, and now {found.config[k]}" for k in changed[:3]]
        return Difference(f"its config.json had {'; '.join(named)}", is_rounding=False)
    layers = [name for name in recorded.weights if name in found.weights]
    others = [name for name in layers if recorded.weights[name] != found.weights[name]]
    if not others and (layers or not recorded.weights or not found.weights):
        return None
    far = [name for name in others if not _is_close(recorded.weights[name], found.weights[name])]
    if layers and not far and recorded.dtype != found.dtype:
        return Difference(
            f"it was stored as {recorded.dtype}, and now as {found.dtype}", is_rounding=True
        )
    if len(others) * 2 > len(layers) or not layers:
        what = f"{len(others)} of {len(layers)} layers have other weights: it is another model"
    else:
        what = (
            f"{', '.join(others[:3])} have other weights ({len(others)} of {len(layers)} layers): "
            "this copy was edited, or is damaged"
        )
    return Difference(what, is_rounding=False)


def _is_close(recorded: str, found: str) -> bool:
    """Whether two mean sizes differ by no more than rounding."""
    try:
        one, other = float(recorded.split()[1]), float(found.split()[1])
    except (IndexError, ValueError):
        return False
    return abs(one - other) <= CLOSE * max(abs(one), abs(other))
