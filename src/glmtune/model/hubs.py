"""Models of hubs: found in a cache, or downloaded, without waiting for a hub out of reach.

    zai-org/chatglm3-6b                 Hugging Face, or the mirror in HF_ENDPOINT
    modelscope://ZhipuAI/chatglm3-6b    ModelScope; any id with USE_MODELSCOPE_HUB=1

Only files that a model is read from are downloaded; code is left where it is.
"""

import functools
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from glmtune.errors import CheckpointError

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MODELSCOPE = "modelscope://"
CONNECT_SECONDS = 3.0  # to reach a hub; its library would try six times, in 40 s
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "MODEL_LICENSE*")
# The first of these that a repository has are its weights; ChatGLM3's has both.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
Fetch = Callable[[Sequence[str]], Path]  # patterns of files -> the folder they are in


def is_hub_id(name: str) -> bool:
    """Whether a name that is no folder may be a model of a hub."""
    return bool(HUB_ID.fullmatch(name.removeprefix(MODELSCOPE)))


def is_on_modelscope(name: str) -> bool:
    """Whether a hub id is read from ModelScope: by its own words, or by the environment."""
    wanted = os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes", "y")
    return name.startswith(MODELSCOPE) or wanted


def resolve(name: str) -> str:
    """Return what transformers reads a hub id from: the id, or a folder of the cache.

    Args:
        name: an id for which `is_hub_id` holds.

    Raises:
        CheckpointError: it is not in the cache and its hub cannot be reached, or is not
            ModelScope's; says both ways out.
    """
    if is_on_modelscope(name):
        return str(_from_modelscope(name, None))
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.is_offline_mode() or (problem := _why_unreachable(constants.ENDPOINT)) is None:
        return name
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return str(Path(cached).parent)
    raise CheckpointError(
        f"{name}: there is no such folder here, the model is not in the cache "
        f"({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} cannot be reached: {problem}. "
        f"{ways_out(name)}"
    )


def ways_out(name: str) -> str:
    """Say how a model gets here where its hub cannot be reached."""
    example = f"{MODELSCOPE}ZhipuAI/chatglm3-6b"
    return (
        f"Take it from ModelScope, such as {example}; or set HF_ENDPOINT to a mirror; or download "
        f"it elsewhere (`glmtune download {name} -o FOLDER`) and give the folder."
    )


def download(name: str, target: Path | None = None) -> Path:
    """Download a model.

    Args:
        name: a hub id.
        target: the folder to write; None is the cache of the hub's own tools.

    Returns:
        The folder, which holds the model.

    Raises:
        CheckpointError: there is no such model, its hub cannot be reached, or a file is missing.
    """
    if is_on_modelscope(name):
        return _from_modelscope(name, target)
    from huggingface_hub import constants, snapshot_download

    if (problem := _why_unreachable(constants.ENDPOINT)) is not None:
        raise CheckpointError(
            f"{name}: {constants.ENDPOINT} cannot be reached: {problem}. {ways_out(name)}"
        )

    def fetch(patterns: Sequence[str]) -> Path:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_dir=target))

    return _fetched(name, fetch, constants.ENDPOINT)


def _from_modelscope(name: str, target: Path | None) -> Path:
    model_id = name.removeprefix(MODELSCOPE)
    try:
        from modelscope_hub import HubApi
    except ImportError as error:
        raise CheckpointError(
            f"{MODELSCOPE}{model_id}: ModelScope's library is not installed. "
            "Run `pip install 'glmtune[modelscope]'`."
        ) from error
    api = HubApi()
    if target is None:
        try:
            cached = Path(api.download_repo(model_id, "model", local_files_only=True))
        except Exception:  # nosec  # it is not there, for which each release has another error
            cached = None
        if cached is not None and _has_weights(cached):
            return cached

    def fetch(patterns: Sequence[str]) -> Path:
        return Path(
            api.download_repo(model_id, "model", allow_patterns=list(patterns), local_dir=target)
        )

    return _fetched(name, fetch, "ModelScope")


def _fetched(name: str, fetch: Fetch, hub: str) -> Path:
    """Download small files, then the first kind of weights that there is."""
    try:
        folder = fetch(SMALL_FILES)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{name}: {hub} has no config.json under this name.")
        for pattern in WEIGHTS:
            folder = fetch([pattern])
            if any(folder.glob(pattern)):
                return folder
    except CheckpointError:
        raise
    except OSError as error:  # of the disk; the network's of both libraries are OSErrors too
        raise CheckpointError(f"{name}: could not be downloaded from {hub}: {error}") from error
    except Exception as error:  # each release of a hub's library raises its own
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{name}: could not be downloaded from {hub}: {type(error).__name__}: {said}"
        ) from error
    raise CheckpointError(
        f"{name}: {hub} has no weights under this name: expected {' or '.join(WEIGHTS)}."
    )


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        path for pattern in WEIGHTS for path in folder.glob(pattern)
    )


@functools.cache
def _why_unreachable(endpoint: str) -> str | None:
    """Say why a hub, or the proxy on the way to it, takes no connection; None if it does."""
    parts = urlsplit(endpoint)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None
