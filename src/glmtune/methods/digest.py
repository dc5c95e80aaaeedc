"""Digests of saved weights: equal for equal files, so that answers of two models never mix.

    adapter          SHA-256 of every byte; the files are small
    complete model   SHA-256 of what is cheap to read, since reading 12 GB takes a minute:
        .safetensors     the header (names, dtypes, shapes) and three samples of every tensor
        .bin             the zip directory, which holds a checksum (CRC-32) of every tensor

Training moves nearly every number of a trained tensor, so samples of all tensors tell two tuned
models apart. A `.safetensors` file in which a few single numbers were edited by hand may keep its
digest.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from glmtune.files import sha256_of_file

SAMPLE_BYTES = 4096  # read at the start, in the middle and at the end of every tensor


def of_files(files: Iterable[Path]) -> str:
    """Digest every byte of some files, and their names."""
    return _of_parts(part for file in files for part in (file.name.encode(), _sha256(file)))


def of_large_files(files: Iterable[Path]) -> str:
    """Digest files of weights by what is cheap to read, and their names."""
    return _of_parts(part for file in files for part in (file.name.encode(), *_samples(file)))


def short_sha256(file: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file."""
    return sha256_of_file(file)[:16]


def _of_parts(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # or "ab", "c" would equal "a", "bc"
        digest.update(part)
    return digest.hexdigest()[:16]


def _sha256(file: Path) -> bytes:
    return bytes.fromhex(sha256_of_file(file))


def _samples(file: Path) -> Iterator[bytes]:
    if file.suffix == ".safetensors":
        yield from _safetensors_samples(file)
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as content:
            for entry in content.infolist():
                yield f"{entry.filename} {entry.file_size} {entry.CRC:08x}".encode()
    else:  # the format of torch before 1.6, or a configuration
        yield _sha256(file)


def _safetensors_samples(file: Path) -> Iterator[bytes]:
    """Yield the header of a safetensors file and samples of its tensors.

    The file is the length of its header (8 bytes), the header (JSON) and the tensors, whose
    `data_offsets` count from the end of the header.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = content.read(min(length, file.stat().st_size))
        yield header
        try:
            tensors = json.loads(header)
            spans = [t["data_offsets"] for name, t in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, AttributeError):
            return  # damaged; loading says so
        for first, end in spans:
            last = max(first, end - SAMPLE_BYTES)
            for offset in (first, (first + last) // 2, last):
                content.seek(8 + length + offset)
                yield content.read(min(SAMPLE_BYTES, end - offset))
