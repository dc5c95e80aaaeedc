"""A bit that flipped anywhere in a downloaded base is found by `info --verify`."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from glmtune.errors import CheckpointError
from glmtune.model.card import verify
from glmtune.model.hub_checksums import downloaded_checksums

WEIGHTS, CONFIG = bytes(range(256)) * 4_000, b'{"model_type": "chatglm"}\n'
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
OF_GIT = hashlib.sha1(b"blob 26\0" + CONFIG).hexdigest()  # as `git hash-object` prints it


def in_the_cache(folder: Path) -> Path:
    """As `snapshot_download` leaves a model."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, checksum, content in (
        ("model.safetensors", SHA256, WEIGHTS),
        ("config.json", OF_GIT, CONFIG),
    ):
        (blobs / checksum).write_bytes(content)
        (snapshot / name).symlink_to(blobs / checksum)
    return snapshot


def in_a_folder(folder: Path) -> Path:
    """As `hf download --local-dir` leaves a model."""
    records = folder / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(CONFIG)
    (records / "model.safetensors.metadata").write_text(f"{'0' * 40}\n{SHA256}\n1.5\n")
    (records / "config.json.metadata").write_text(f"{'0' * 40}\n{OF_GIT}\n1.5\n")
    (records / "deleted.txt.metadata").write_text(f"{'0' * 40}\n{SHA256}\n1.5\n")
    (records / "model.safetensors.lock").write_bytes(b"")
    return folder


@pytest.mark.parametrize("download", [in_the_cache, in_a_folder])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_of_a_downloaded_base_is_found(
    download: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    folder = download(tmp_path)
    assert downloaded_checksums(folder) == {"model.safetensors": SHA256, "config.json": OF_GIT}
    assert verify(folder, whole=True) == 2
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 3] ^= 4
    (folder / name).write_bytes(content)

    with pytest.raises(
        CheckpointError, match=rf"{name} is not what the hub has.*Download it again"
    ):
        verify(folder, whole=True)


def test_a_folder_without_a_record_or_with_a_damaged_one_has_no_checksums(tmp_path: Path) -> None:
    folder = in_a_folder(tmp_path)
    records = folder / ".cache" / "huggingface" / "download"
    (records / "model.safetensors.metadata").write_bytes(b"\xff" * 50_000)
    (records / "config.json.metadata").write_text("x\ny\n")

    assert downloaded_checksums(folder) == {}
    assert verify(folder, whole=True) == 0
