"""Tensors become shards of at most a given size, with an index that transformers reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glmtune.errors import RecipeError
from glmtune.use.export.shards import parse_size, write_shards

TENSORS = [(f"t{index}", torch.full((100,), float(index))) for index in range(5)]  # 400 bytes each


def test_a_shard_is_closed_when_the_next_tensor_does_not_fit(tmp_path: Path) -> None:
    assert write_shards(tmp_path, iter(TENSORS), max_bytes=900, total_bytes=2000) == 2000

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text("utf-8"))
    assert index["metadata"]["total_size"] == 2000
    assert index["weight_map"] == {
        "t0": "model-00001-of-00003.safetensors",
        "t1": "model-00001-of-00003.safetensors",
        "t2": "model-00002-of-00003.safetensors",
        "t3": "model-00002-of-00003.safetensors",
        "t4": "model-00003-of-00003.safetensors",
    }
    for name, tensor in TENSORS:
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def test_what_fits_into_one_file_has_no_index(tmp_path: Path) -> None:
    write_shards(tmp_path, iter(TENSORS), max_bytes=10_000, total_bytes=2000)

    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1GiB", 2**30), ("1.5G", 15 * 10**8), ("7", 7)],
)
def test_a_size_has_a_unit_in_either_system(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "2 shards", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="expected a size such as 2GB"):
        parse_size(text)
