"""`glmtune.json`: how a folder's prompts were built, what its files are, and what it was made from.

    template, template_fingerprint   how prompts were built
    files                            the SHA-256 of weights, configurations and tokenizer files
    weights                          of a complete model: samples by layer (`model.fingerprint`)
    base                             of an adapter: the fingerprint of what it was trained over

Files that decide answers are verified whenever a folder is loaded: whole if they are small; of a
complete model only samples, since reading 12 GB takes as long as loading it; `glmtune info
--verify` reads every byte. A folder without an entry (made by another tool, or by an earlier
release) is loaded as it is, and so is a file whose entry was deleted on purpose.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

import glmtune
from glmtune.errors import CheckpointError
from glmtune.files import read_json_as, sha256_of_file, write_atomically
from glmtune.model.fingerprint import Fingerprint, fingerprint
from glmtune.model.hub_checksums import downloaded_checksums, is_as_downloaded

CARD = "glmtune.json"
SMALL_BYTES = 128 * 2**20  # a file up to this size is read whole when its folder is loaded
# What decides answers. Tokenizer files do too; the fingerprint of the template compares those.
_DECISIVE = re.compile(
    r"(adapter_model|model|pytorch_model|prompt_encoder)[^/\\]*\.(safetensors|bin)"
    r"|adapter_config\.json|config\.json|[^/\\]*\.index\.json|[^/\\]*\.gguf|Modelfile"
)
_OF_TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|generation_config)\.json"
    r"|tokenizer\.model|merges\.txt|[^/\\]*\.jinja"
)
REMEDY = "Restore the file, or delete it to use the folder without the checks that it allows."

Scalar = str | int | float | bool | None
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sampled = Annotated[str, Field(max_length=100)]


class BaseRecord(BaseModel):
    """What an adapter was trained over."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str = ""
    config: dict[str, Any] = {}
    dtype: str = ""
    weights: dict[str, Sampled] = {}

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint that was recorded."""
        return Fingerprint(self.config, self.dtype, self.weights)


class Card(BaseModel):
    """The content of `glmtune.json`.

    Attributes:
        version: of glmtune.
        template: the description of the template that built the prompts.
        fingerprint: of that template.
        files: SHA-256 by name.
        weights: of a complete model, samples by layer.
        base: what an adapter was trained over, None if that is not recorded.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    version: Annotated[str, Field(alias="glmtune_version")]
    template: dict[str, Scalar]
    fingerprint: Annotated[str, Field(alias="template_fingerprint")]
    files: dict[Annotated[str, Field(pattern=r"^[^/\\]+$")], Sha256] = {}
    weights: dict[str, Sampled] = {}
    base: BaseRecord | None = None


def read_card(folder: Path) -> Card | None:
    """Read the card of a folder; None for a folder made elsewhere.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / CARD).is_file():
        return None
    return read_json_as(folder / CARD, Card, remedy=REMEDY)[0]


def write_card(
    folder: Path,
    template: dict[str, Any],
    template_fingerprint: str,
    base: tuple[str, Fingerprint] | None = None,
) -> None:
    """Write the card of a folder, with checksums of the files that are there already.

    Args:
        folder: complete but for the card, and for a tokenizer; see `seal`.
        template: the description of the template.
        template_fingerprint: of that template.
        base: the name and the fingerprint of what an adapter was trained over.
    """
    card: dict[str, Any] = {
        "glmtune_version": glmtune.__version__,
        "template": template,
        "template_fingerprint": template_fingerprint,
    }
    if base is not None:
        name, found = base
        card["base"] = {
            "name": name,
            "dtype": found.dtype,
            "config": dict(found.config),
            "weights": dict(found.weights),
        }
    _write(folder, card | _checksums(folder))


def seal(folder: Path) -> None:
    """Compute the checksums in a card again, after files were added to its folder."""
    content = json.loads((folder / CARD).read_text(encoding="utf-8"))
    _write(folder, content | _checksums(folder))


def _write(folder: Path, card: dict[str, Any]) -> None:
    write_atomically(folder / CARD, json.dumps(card, ensure_ascii=False, indent=2) + "\n")


def _checksums(folder: Path) -> dict[str, Any]:
    sealed = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and (_DECISIVE.fullmatch(file.name) or _OF_TOKENIZER.fullmatch(file.name))
    ]
    found: dict[str, Any] = {"files": {file.name: sha256_of_file(file) for file in sealed}}
    if any(_is_large(file) for file in sealed):
        found["weights"] = dict(fingerprint(folder).weights)
    return found


def _is_large(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin") and file.stat().st_size > SMALL_BYTES


def verify(folder: Path, *, whole: bool = False) -> int:
    """Refuse a folder of which a file is not what was written, or what was downloaded.

    Args:
        folder: of a model or an adapter.
        whole: read every byte of every file, also of those that do not decide answers, and
            compare with what a download has recorded.

    Returns:
        The number of files that were compared; 0 where no checksums are recorded.

    Raises:
        CheckpointError: a file is not what was written; names it.
    """
    compared, change = find_change(folder, whole=whole)
    if change:
        raise CheckpointError(change)
    return compared + (_verify_download(folder) if whole else 0)


def _verify_download(folder: Path) -> int:
    """Compare the files that a hub gave with its checksums; those in our card have changed."""
    card = read_card(folder)
    ours = {} if card is None else card.files
    checksums = downloaded_checksums(folder)
    compared = [name for name in checksums if name not in ours]
    for name in compared:
        if not is_as_downloaded(folder / name, checksums[name]):
            raise CheckpointError(
                f"{folder}: {name} is not what the hub has, since its checksum differs: it was "
                "damaged on the way or on this disk, or edited. Download it again."
            )
    return len(compared)


def find_change(folder: Path, *, whole: bool = False) -> tuple[int, str]:
    """Compare the files of a folder with the checksums in its card.

    Args:
        folder, whole: as for `verify`.

    Returns:
        The number of files that were compared, and which is not what was written; "" for none.

    Raises:
        CheckpointError: the card cannot be read.
    """
    card = read_card(folder)
    if card is None:
        return 0, ""
    compared, has_large = 0, False
    for name, expected in card.files.items():
        file = folder / name
        if not file.is_file() or not (whole or _DECISIVE.fullmatch(name)):
            continue  # loading says what is missing
        compared += 1
        if _is_large(file) and not whole:
            has_large = True
        elif sha256_of_file(file) != expected:
            return compared, _changed(folder, name, f'its line under "files" in {CARD}')
    if has_large and card.weights:
        found = fingerprint(folder).weights
        for layer, sampled in card.weights.items():
            if layer in found and found[layer] != sampled:
                entries = f'"files" and "weights" from {CARD}'
                return compared, _changed(folder, f"the weights of {layer}", entries)
    return compared, ""


def _changed(folder: Path, what: str, entry: str) -> str:
    return (
        f"{folder}: {what} is not what was written, since its checksum differs: it was edited or "
        "damaged after training. Copy the folder again, or use an earlier checkpoint. If you "
        f"edited it on purpose, delete {entry}."
    )
