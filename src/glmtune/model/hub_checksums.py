r"""Checksums that a download from the Hugging Face Hub has left, of every byte of a base.

    in the cache      snapshots/REVISION/model.safetensors -> ../../blobs/CHECKSUM
    in a local_dir    .cache/huggingface/download/model.safetensors.metadata, second line

Large files have their SHA-256; others have git's SHA-1, of `blob SIZE\0` and the content.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from glmtune.files import sha256_of_file

_CHECKSUM = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_DOWNLOADS = Path(".cache", "huggingface", "download")
_MAX_BYTES = 1_000  # of a file that records a download


def downloaded_checksums(folder: Path) -> dict[str, str]:
    """Return the checksums that a download has recorded, by name; none for other folders."""
    return {name: checksum for name, checksum in _recorded(folder) if _CHECKSUM.fullmatch(checksum)}


def _recorded(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and (blob := path.resolve()).parent.name == "blobs":
            yield path.name, blob.name
    for record in sorted((folder / _DOWNLOADS).glob("*.metadata")):
        name = record.name.removesuffix(".metadata")
        if (folder / name).is_file():
            with record.open("rb") as file:
                lines = file.read(_MAX_BYTES).decode(errors="replace").splitlines()
            yield name, lines[1].strip() if len(lines) > 1 else ""


def is_as_downloaded(file: Path, checksum: str) -> bool:
    """Read every byte of a file, and compare it with what the hub has.

    Args:
        file: that was downloaded.
        checksum: from `downloaded_checksums`.
    """
    if len(checksum) == 64:
        return sha256_of_file(file) == checksum
    digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(file.read_bytes())  # a small file, or it would have a SHA-256
    return digest.hexdigest() == checksum
