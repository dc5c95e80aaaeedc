"""A server over the taught tiny model with two adapters, on a real socket."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.methods import method
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import AdapterSection, LoraSection
from glmtune.template.select import template_for
from glmtune.use.serve.access import Access, Address, bind, check_access
from glmtune.use.serve.engine import Engine, Limits
from glmtune.use.serve.hosted import Hosted, open_hosted

EVERY_LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def make_adapter(
    base: Path, folder: Path, section: AdapterSection | None = None, *, seed: int = 0,
    layout: Any = "official", strength: float = 0.3,
) -> Path:  # fmt: skip
    """An adapter that changes answers, with random weights."""
    model = load_model(base)
    tuned = method.attach(model, section or LoraSection(r=4, target_modules=EVERY_LINEAR))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, strength, generator=generator)
    method.save(tuned, folder, template_for(load_tokenizer(base), layout))
    return folder


@pytest.fixture(scope="session")
def adapters(taught_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters by LoRA, with different targets and layouts."""
    folder = tmp_path_factory.mktemp("adapters")
    qkv = LoraSection(r=2, target_modules=("query_key_value",))
    return {
        "one": make_adapter(taught_model_dir, folder / "one", seed=1),
        "two": make_adapter(taught_model_dir, folder / "two", qkv, seed=2, layout="tutorial"),
    }


@pytest.fixture(scope="session")
def hosted(taught_model_dir: Path, adapters: dict[str, Path]) -> Hosted:
    return open_hosted(str(taught_model_dir), adapters)


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    engine: Engine
    base: str


@contextmanager
def running(hosted: Hosted, limits: Limits | None = None, access: Access | None = None) -> Any:
    """Serve on a free port of this machine, in threads of this process."""
    import uvicorn

    from glmtune.use.serve.app import make_app
    from glmtune.use.serve.metrics import Metrics

    address, metrics = Address(port=0), Metrics()
    engine = Engine(hosted, limits or Limits(max_batch=8, num_kept=4, max_length=512), metrics)
    app = make_app(engine, metrics, check_access(address, access or Access()))
    bound = bind(address)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    base = next(name for name, served in hosted.names.items() if not served.adapter)
    try:
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", engine, base)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(hosted: Hosted) -> Iterator[Running]:
    with running(hosted) as started:
        yield started


def until(condition: Any, timeout_seconds: float = 20) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.005)


def ask(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Send a request as curl does; return the status and the JSON."""
    import urllib.error
    import urllib.request

    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    named = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url + path, data, named)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
