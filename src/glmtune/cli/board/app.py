"""The web application: the page, its API, and who may use it.

    GET  /                     the page, and its files
    POST /api/...              one typed function each; JSON in, JSON out
    GET  /report/RUN           report.html of a run, where it can neither run code of ours nor load
    *    /chat/...             the chat page of `glmtune serve`

A page of another site cannot use it: the server answers to its own names only, and a request must
come from its own page, with a type that browsers do not send across sites unasked.
"""

import hmac
import inspect
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.cli.board.actions import Actions
from glmtune.cli.board.bodies import Body
from glmtune.cli.board.chat import Chat
from glmtune.cli.board.folder import BoardError, StartFolder
from glmtune.cli.board.jobs import Jobs
from glmtune.cli.board.recipes import Recipes
from glmtune.cli.board.rows import Data
from glmtune.cli.board.runs import Runs
from glmtune.errors import GlmtuneError
from glmtune.use.serve.access import POLICY, SECURITY, Access

logger = logging.getLogger(__name__)

MOST_BODY = 2 * 2**20  # bytes of a request
COOKIE = "glmtune-board"
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
PAGE = (
    "index.html", "board.css", "parts.css", "board.js", "texts.js", "parts.js", "charts.js",
    "data.js", "recipe.js", "run.js", "runs.js",
)  # fmt: skip
PUBLIC = frozenset({"/", "/api/login", *(f"/{name}" for name in PAGE)})  # need no key


def make_app(start: StartFolder, access: Access) -> Starlette:
    """Make the application over a start folder."""
    jobs = Jobs(start)
    runs = Runs(start, jobs)
    recipes, data, chat = Recipes(start), Data(start), Chat(start, runs)
    functions = _functions(data, recipes, Actions(start, jobs, runs), chat)
    door = _Door(access)

    def end_waiting() -> None:
        recipes.end()
        data.end()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        end_waiting()
        await run_in_threadpool(chat.end)

    app = Starlette(
        routes=[
            *(_route(f"/api/{name}", function) for name, function in functions.items()),
            Route("/api/login", door.login, methods=["POST"]),
            Route("/report/{run:path}", _reports(start, runs), methods=["GET"]),
            Route("/chat", RedirectResponse("/chat/"), methods=["GET"]),
            Route("/chat/{path:path}", chat.forward, methods=["GET", "POST"]),
            _page("/", "index.html"),
            *(_page(f"/{name}", name) for name in PAGE),
        ],
        middleware=[Middleware(_Guard, door=door)],
        exception_handlers={HTTPException: _http_error, GlmtuneError: _our_error},
        lifespan=lifespan,
    )
    app.state.end_waiting = end_waiting  # before connections are closed
    return app


def _functions(
    data: Data, recipes: Recipes, actions: Actions, chat: Chat
) -> dict[str, Callable[..., Any]]:
    return {
        "files": data.files, "look": data.look, "lint": data.lint, "fix": data.fix, "row": data.row,
        "form": recipes.form, "check": recipes.check, "read": recipes.read, "save": recipes.save,
        "plan": recipes.plan, "suggest": recipes.suggest,
        "runs": actions.all, "run": actions.watch, "start": actions.start,
        "resume": actions.resume, "stop": actions.stop, "compare": actions.compare,
        "evaluate": actions.evaluate, "export": actions.export,
        "jobs": actions.jobs, "job": actions.job, "stop-job": actions.stop_job,
        "chat": chat.state, "open-chat": chat.open, "close-chat": chat.close,
    }  # fmt: skip


def _reports(start: StartFolder, runs: Runs) -> Callable[[Request], Response]:
    """Serve the reports of runs."""

    def report(request: Request) -> Response:
        path = runs.folder(request.path_params["run"]) / "report.html"
        if not path.is_file() or start.inside(str(path)) != path:
            raise HTTPException(404, "the run has no report.html yet.")
        headers = {**SECURITY, "Content-Security-Policy": REPORT_POLICY}
        return Response(path.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)

    return report


def answer_with(content: Any, status: int = 200) -> Response:
    """Answer with JSON; halves of surrogate pairs, as rows may have, stay escaped."""
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _route(path: str, function: Callable[..., Any]) -> Route:
    """Serve a function of one body; an asynchronous one may ask whether the page has left."""
    kind: type[Body] = inspect.get_annotations(function, eval_str=True)["asked"]
    is_async = inspect.iscoroutinefunction(function)

    async def answer(request: Request) -> Response:
        try:
            body = kind.model_validate(await _read(request))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the request"
            raise BoardError(f"{where}: {first['msg']}. Reload the page.") from None
        if is_async:
            return answer_with(await function(body, request.is_disconnected))
        return answer_with(await run_in_threadpool(function, body))

    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except GlmtuneError as error:
            return await _our_error(request, error)
        except Exception as error:  # a bug of ours: the page gets no traceback
            logger.exception("internal error in %s", path)
            message = f"an internal error of the board ({type(error).__name__}); its log names it."
            return answer_with({"error": message}, 500)

    return Route(path, guarded, methods=["POST"])


async def _read(request: Request) -> Any:
    """Read the JSON of a request.

    Raises:
        BoardError: it is too long, or no JSON object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BoardError("expected the header Content-Type: application/json.", 415)
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BODY:
            raise BoardError(f"the request has more than {MOST_BODY:,} bytes. Send less.", 413)
    try:
        return json.loads(content.decode("utf-8") or "{}")
    except (ValueError, RecursionError):
        raise BoardError("the request is no JSON. Reload the page.") from None


async def _our_error(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, BoardError) else 422
    message = str(error).encode(errors="backslashreplace").decode()  # it may quote a request
    return answer_with({"error": message}, status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer_with({"error": f"{error.detail}"}, error.status_code)


def _page(path: str, name: str) -> Route:
    """Serve a file of the page."""
    content = (files("glmtune.cli.board") / "page" / name).read_bytes()
    headers = {**SECURITY, "Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    media_type = next(kind for ending, kind in TYPES.items() if name.endswith(ending))

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, answer, methods=["GET"])


class _Door:
    """Who may use the board: anybody on this machine, or who has the key.

    A page asks for the key once and gets a cookie, since a report and the chat open in tabs that
    send no header.

    Args:
        access: who may use it.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session = secrets.token_urlsafe(32)

    async def login(self, request: Request) -> Response:
        """Exchange the key for a cookie."""
        if not self._access.has_key(dict(request.headers.raw)):
            return answer_with({"error": "the key is wrong."}, 401)
        response = answer_with({})
        response.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", path="/")
        return response

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Say why a request is not let in; None if it is."""
        headers = dict(request.headers.raw)
        if not self._access.allows_host(headers):
            return 403, (
                "this board answers to this machine only. Use the address that it has printed, or "
                "start it with --host and a key."
            )
        if request.url.path in PUBLIC and request.method == "GET":
            return None
        site = request.headers.get("sec-fetch-site", "none")
        origin = request.headers.get("origin")
        is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if not is_own or site not in ("none", "same-origin"):
            return 403, "this request comes from a page of another site."
        if request.url.path in PUBLIC or self._access.has_key(headers):
            return None
        session = request.cookies.get(COOKIE, "")
        if hmac.compare_digest(session.encode(), self._session.encode()):
            return None
        return 401, "the key is missing. Open the page and enter it."


class _Guard:
    """Let in who may come in, and add the headers of every answer.

    Args:
        app: the application that it runs.
        door: says who may come in.
    """

    def __init__(self, app: ASGIApp, door: _Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {key for key, _ in message["headers"]}
                own = ((key.lower().encode(), value.encode()) for key, value in SECURITY.items())
                message["headers"] = [*message["headers"], *(h for h in own if h[0] not in given)]
            await send(message)

        refusal = self._door.refusal(Request(scope))
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            status, message = refusal
            await answer_with({"error": message}, status)(scope, receive, send_with_headers)
