"""The web application: routes, keys, logs and the page.

Nothing that a user writes is logged: a line has the endpoint, the status and the time. Prompts,
answers, keys and paths of files stay out of it.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.use.serve.access import POLICY, SECURITY, Access
from glmtune.use.serve.answers import Answerer
from glmtune.use.serve.endpoints import Endpoint, Endpoints
from glmtune.use.serve.engine import Engine
from glmtune.use.serve.metrics import Metrics
from glmtune.use.serve.protocol import ApiError

logger = logging.getLogger(__name__)

PUBLIC = frozenset({"/", "/page.js", "/page.css", "/health"})  # need no key


def make_app(engine: Engine, metrics: Metrics, access: Access) -> Starlette:
    """Make the application; it starts and closes the engine."""
    endpoints = Endpoints(Answerer(engine), metrics, access.max_body_bytes)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.close()

    middleware = [Middleware(_Guard, access=access, metrics=metrics)]
    if access.origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=list(access.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            ),
        )
    return Starlette(
        routes=[
            _route("/v1/models", endpoints.models, "GET"),
            _route("/v1/models/{name:path}", endpoints.model, "GET"),
            _route("/v1/chat/completions", endpoints.chat, "POST"),
            _route("/v1/completions", endpoints.complete, "POST"),
            _route("/v1/embeddings", endpoints.embed, "POST"),
            _route("/health", endpoints.health, "GET"),
            _route("/metrics", endpoints.metrics, "GET"),
            *(_page(*each) for each in PAGE),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


def _route(path: str, endpoint: Endpoint, method: str) -> Route:
    """Serve an endpoint, whose errors are answers."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ApiError as error:
            return JSONResponse(error.body, error.status, error.headers)
        except Exception as error:  # a bug of ours: the client gets no traceback
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}" if place else "?"
            logger.error("internal error: %s in %s", type(error).__name__, where)
            failure = ApiError("an internal error of the server; its log names it.", 500)
            return JSONResponse(failure.body, 500)

    return Route(path, answer, methods=[method])


async def _http_error(request: Request, error: Exception) -> Response:
    """Write what no route answers in the form of the API."""
    assert isinstance(error, HTTPException)
    known = "GET /v1/models, POST /v1/chat/completions, /v1/completions or /v1/embeddings"
    messages = {
        404: f"there is no such path here. Use {known}.",
        405: f"{request.method[:20]} is not allowed here. Use {known}.",
    }
    shown = ApiError(messages.get(error.status_code, str(error.detail)), error.status_code)
    return JSONResponse(shown.body, error.status_code, error.headers)


PAGE = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
)


def _page(path: str, name: str, media_type: str) -> Route:
    """Serve a file of the page."""
    content = (files("glmtune.use.serve") / "page" / name).read_bytes()
    headers = {**SECURITY, "Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, answer, methods=["GET"])


class _Guard:
    """Ask for the key, and count and log every request.

    Args:
        app: the application that it runs.
        access: who may use it.
        metrics: counts the requests.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(key.lower().encode(), value.encode()) for key, value in SECURITY.items()]
                given = {key for key, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in own if h[0] not in given)]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                response = JSONResponse(refusal.body, refusal.status, refusal.headers)
                await response(scope, receive, send_counted)
            else:
                await self._app(scope, receive, send_counted)
        finally:
            endpoint = _name_of(scope["path"])
            self._metrics.add("requests_total", endpoint=endpoint, status=str(status))
            logger.info("%s %d in %.2f s", endpoint, status, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Say why a request is not let in; None if it is."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self._access.allows_host(headers):
            return ApiError(
                "this server answers to this machine only. Use the address that it has printed, or "
                "start it with --host and a key.",
                403,
                code="host_not_allowed",
            )
        if scope["path"] in PUBLIC or self._access.api_key is None:
            return None
        if self._access.has_key(headers):
            return None
        return ApiError(
            "the API key is missing or wrong. Send the header Authorization: Bearer KEY "
            "with the key that the server was started with.",
            401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


_ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/health",
    "/metrics",
)


def _name_of(path: str) -> str:
    """Name an endpoint in logs and metrics: a path that a client made up is "other"."""
    if path in PUBLIC - {"/health"}:
        return "page"
    return next((each for each in _ENDPOINTS if path.startswith(each)), "other")
