"""Who may use a server on this machine: its address, its key, and the names it answers to.

Nothing heavy is imported, so a wrong address is refused before a model is loaded.
"""

import hmac
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from glmtune.errors import OutputError, RecipeError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a server.

    Attributes:
        api_key: that requests must give as a bearer token; None for none.
        origins: pages of other servers that browsers let in.
        hosts: the names by which requests may address it; none for any. Without them, a page of
            another server could reach it by a name that it lets point here.
        max_body_bytes: of a request.
    """

    api_key: str | None = None
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()
    max_body_bytes: int = 4 * 2**20

    def allows_host(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request addresses the server by one of its names."""
        host = re.sub(rb":\d+$", b"", headers.get(b"host", b"")).decode("latin-1").lower()
        return not self.hosts or host in self.hosts

    def has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request has the key, or needs none."""
        if self.api_key is None:
            return True
        wanted = b"Bearer " + self.api_key.encode()
        return hmac.compare_digest(headers.get(b"authorization", b""), wanted)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Attributes:
        host: a name or an IP address.
        port: 0 takes a free one.
        is_open: no key is needed, even if others can reach the host.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    is_open: bool = False


def check_access(address: Address, access: Access) -> Access:
    """Refuse to let a whole network in without a key; limit the names of a local server.

    Raises:
        RecipeError: the address is not this machine's own, and there is no key.
    """
    if access.api_key is not None and not (access.api_key.isascii() and access.api_key.strip()):
        raise RecipeError("the API key must be ASCII text and not empty. Choose another one.")
    if is_loopback(address.host):
        return replace(access, hosts=LOOPBACK)
    if access.api_key is None and not address.is_open:
        raise RecipeError(
            f"--host {address.host} lets other machines in, so a key is needed: set "
            "GLMTUNE_API_KEY or --api-key. To serve everybody who can reach this machine, pass "
            "--no-key."
        )
    return access


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(address: Address) -> socket.socket:
    """Bind the address.

    Raises:
        OutputError: it is taken, or not this machine's.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(128)  # who comes before the first answer waits
    except OSError as error:
        raise OutputError(
            f"{address.host}:{address.port}: cannot listen there: {error.strerror}. Stop what uses "
            "the port, or choose another one: --port 8001 (--port 0 takes a free one)."
        ) from None
    return bound


def url_of(host: str, port: int) -> str:
    """Return the URL under which this machine reaches a server."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def require_packages() -> None:
    """Refuse to start without the packages of the extra.

    Raises:
        RecipeError: says how to install them.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"a server needs the package {error.name}, which is not installed. "
            "Run `pip install 'glmtune[serve]'`."
        ) from None
