"""Start a server: load the models, bind the address, answer until it is stopped."""

import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from glmtune.kernels.row_cache import supports_row_cache
from glmtune.machine import host_memory
from glmtune.units import readable
from glmtune.use.serve.access import Access, Address, bind, check_access, is_loopback, url_of
from glmtune.use.serve.app import make_app
from glmtune.use.serve.engine import Engine, Limits
from glmtune.use.serve.hosted import Hosted
from glmtune.use.serve.metrics import Metrics

logger = logging.getLogger(__name__)

CACHE_SHARE = 0.7  # of the memory that is free once the model is loaded


def fit_limits(hosted: Hosted, limits: Limits) -> Limits:
    """Reduce how many sequences there are at once to what the memory holds.

    The cache grows to `max_batch + num_kept` rows of `max_length` tokens in each lane. Rows that
    keep beginnings go first, then places.
    """
    model = hosted.lanes[0].model
    context = getattr(model.config, "max_position_embeddings", None) or limits.max_length
    limits = replace(limits, max_length=min(limits.max_length, context))
    row_bytes = _bytes_per_token(model) * limits.max_length * len(hosted.lanes)
    if not row_bytes:
        return limits
    free = host_memory().available_bytes
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    most = max(int(CACHE_SHARE * free / row_bytes), 1)
    if limits.max_batch + limits.num_kept <= most:
        return limits
    places = min(limits.max_batch, max(most - most // 4, 1))
    fitted = replace(limits, max_batch=places, num_kept=most - places)
    logger.warning(
        "%s are free, and a sequence of %s tokens may need %s: %d sequences at once instead of %d. "
        "A smaller --max-length allows more.",
        readable(free),
        f"{limits.max_length:,}",
        readable(row_bytes),
        fitted.max_batch,
        limits.max_batch,
    )
    return fitted


def _bytes_per_token(model: Any) -> int:
    """Return the size of the keys and values of a token; 0 if it is not known."""
    if not supports_row_cache(model):
        return 0
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "kv_channels", None) or getattr(config, "head_dim", None)
    width = kv_heads * (head_dim or config.hidden_size // heads)
    return int(2 * config.num_hidden_layers * width * model.dtype.itemsize)


def serve(
    hosted: Hosted,
    *,
    address: Address,
    access: Access,
    limits: Limits,
    announce: Callable[[str], None],
) -> None:
    """Answer requests until the process is stopped.

    Args:
        hosted: the models.
        address: where to listen.
        access: who may use it.
        limits: how much is taken on.
        announce: is called with each line about the server, once it listens.

    Raises:
        OutputError: the address cannot be bound.
        RecipeError: the address needs a key.
    """
    import uvicorn

    access = check_access(address, access)
    bound = bind(address)
    metrics = Metrics()
    limits = fit_limits(hosted, limits)
    app = make_app(Engine(hosted, limits, metrics), metrics, access)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        limit_concurrency=limits.max_batch + 4 * limits.max_queue,
    )
    for line in describe(hosted, address.host, bound.getsockname()[1], access):
        announce(line)
    uvicorn.Server(config).run(sockets=[bound])


def describe(hosted: Hosted, host: str, port: int, access: Access) -> Iterator[str]:
    """Say where a server is, what it answers with, and what serves more users."""
    url = url_of(host, port)
    yield f"Page: {url}   API: {url}/v1   models: {', '.join(hosted.names)}"
    if not is_loopback(host) and access.api_key is None:
        yield f"Everybody who can reach {host} may use it."
    for folder in list(hosted.adapters.values())[:1]:
        source = shlex.quote(str(folder))
        yield f"For heavy traffic, hand it to vLLM: glmtune export {source} --to vllm -o for-vllm"
