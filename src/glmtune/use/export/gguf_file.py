"""Write a GGUF: keys, then the names and shapes of all tensors, then one tensor after another.

At most one tensor is in memory. The file is written as NAME.partial and renamed when it is
complete.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from glmtune.errors import CheckpointError, OutputError, RecipeError
from glmtune.files import nearest_folder
from glmtune.units import readable

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: tuple[GgufType, ...] = get_args(GgufType)
ARCHITECTURE = "chatglm"
_ROWS = 4096  # of a matrix, quantized together
_TORCH_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_LARGEST = {"f16": 65504.0, "q8_0": 127 * 65504.0}  # blocks of q8_0 have a scale in float16


def check_type(dtype: str) -> GgufType:
    """Return the type of the matrices, if this library writes it and is installed.

    Raises:
        RecipeError: the package gguf is missing, or does not write the type.
    """
    if find_spec("gguf") is None:
        raise RecipeError(
            "a GGUF is written by the package gguf, which is not installed. Run "
            "`pip install 'glmtune[gguf]'`."
        )
    for known in TYPES:
        if dtype.lower() == known:
            return known
    raise RecipeError(
        f"the GGUF type {dtype!r} cannot be written here, expected one of {', '.join(TYPES)}. For "
        "fewer bits write f16, then run llama.cpp's own tool on it: llama-quantize model-f16.gguf "
        f"model.gguf {dtype.upper() if dtype.lower().startswith(('q', 'iq')) else 'Q4_K_M'}."
    )


@contextmanager
def new_gguf(out: Path) -> Iterator["GGUFWriter"]:
    """Yield a writer of an architecture `chatglm`; what it writes gets its name on success.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    from gguf import GGUFWriter

    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: already exists, and is never written over. Give another name.")
    partial = out.with_name(f"{out.name}.partial")
    writer = GGUFWriter(partial, ARCHITECTURE)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield writer
        assert writer.fout is not None
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
        writer.close()
        partial.replace(out)
    except BaseException as error:
        writer.close()
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(_explain(out, error)) from error
        raise


def _explain(out: Path, error: OSError) -> str:
    # NumPy's own error for a short write has no errno.
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) or " requested and " in str(error)
    if is_full:
        return (
            f"{out}: the disk is full, and what was written of it is removed. Free some space, or "
            "give a file on another disk."
        )
    return f"{out}: could not be written: {error.strerror or error}. Give another file."


def write_tensors(
    writer: "GGUFWriter",
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: GgufType,
) -> None:
    """Write the keys of a GGUF and its tensors.

    Args:
        writer: with all keys.
        shapes: of the tensors, by their names in the GGUF.
        tensors: the same, in the same order.
        dtype: of matrices; vectors are always float32.

    Raises:
        CheckpointError: a number does not fit into the type.
        OutputError: there is not enough space.
    """
    types = {name: _type_for(shape, dtype) for name, shape in shapes.items()}
    sizes = {name: _stored_shape(shapes[name], types[name]) for name in shapes}
    assert writer.path is not None
    _check_space(writer.path, sum(_num_bytes(*size) for size in sizes.values()))
    for name, (shape, numpy_type) in sizes.items():
        raw = None if types[name] == "f32" else _raw_type(types[name])
        writer.add_tensor_info(name, shape, numpy_type, _num_bytes(shape, numpy_type), raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for expected, (name, tensor) in zip(shapes, tensors, strict=True):
        assert (name, tuple(tensor.shape)) == (expected, shapes[expected])
        writer.write_tensor_data(encoded(name, tensor, types[name]))


def _type_for(shape: tuple[int, ...], dtype: GgufType) -> GgufType:
    """Return the type of a tensor: vectors stay float32, and short rows have no blocks of 32."""
    if len(shape) == 1:
        return "f32"
    return "f16" if dtype == "q8_0" and shape[-1] % 32 else dtype


def _raw_type(dtype: GgufType) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[dtype.upper()]


def _stored_shape(
    shape: tuple[int, ...], dtype: GgufType
) -> "tuple[tuple[int, ...], np.dtype[Any]]":
    """Return the shape and NumPy's type of what is written; blocks are rows of bytes."""
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape

    if dtype == "f32":
        return shape, np.dtype(np.float32)
    if dtype == "f16":
        return shape, np.dtype(np.float16)
    return tuple(quant_shape_to_byte_shape(shape, _raw_type(dtype))), np.dtype(np.uint8)


def _num_bytes(shape: tuple[int, ...], numpy_type: "np.dtype[Any]") -> int:
    return int(torch.Size(shape).numel() * numpy_type.itemsize)


def encoded(name: str, tensor: Tensor, dtype: GgufType) -> "np.ndarray[Any, Any]":
    """Return a tensor as it is written.

    Raises:
        CheckpointError: a number does not fit into the type.
    """
    import numpy as np
    from gguf.quants import quantize

    largest = max(map(abs, torch.stack(tensor.detach().aminmax()).tolist()))
    if not largest <= _LARGEST.get(dtype, torch.finfo(torch.float32).max):  # true for NaN too
        raise CheckpointError(
            f"{name}: its largest number is {largest:g}, which {dtype} cannot hold. Write bf16 or "
            "f32, and check the model if it is not a number."
        )
    if dtype == "q8_0":  # some rows at a time, since it computes in float32
        rows = torch.split(tensor.detach(), _ROWS)
        return np.concatenate([quantize(each.float().numpy(), _raw_type(dtype)) for each in rows])
    numbers = tensor.detach().to(_TORCH_TYPES[dtype]).contiguous()
    return (numbers.view(torch.uint8) if dtype == "bf16" else numbers).numpy()


def _check_space(path: Path, num_bytes: int) -> None:
    import shutil

    free = shutil.disk_usage(nearest_folder(path)).free
    if free < num_bytes:
        raise OutputError(
            f"{path.with_suffix('')}: {readable(num_bytes)} would be written, and the disk has "
            f"{readable(free)} free. Free some space, or give a file on another disk."
        )
