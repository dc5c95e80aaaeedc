"""Requests and errors of OpenAI's API, as far as this server answers them.

A body is read once, here: everything after it is typed and bounded. A field that would change the
answer and is not supported is refused; fields that only label a request are ignored.

Source: https://platform.openai.com/docs/api-reference; `top_k` and `repetition_penalty` are
extensions that other servers have, too.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from glmtune.errors import GlmtuneError, some

MAX_CHOICES = 16
MAX_MESSAGES = 2000
MAX_TOOLS = 128
MAX_TEXTS = 256  # of one request for embeddings
MAX_DEPTH = 64  # of lists and objects in each other

# They label a request, or ask how it is run, but do not change the answer.
IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
        "prompt_cache_key", "prompt_cache_retention", "verbosity",
    }
)  # fmt: skip


class ApiError(GlmtuneError):
    """A request that is not answered, in the form that clients of OpenAI read.

    Args:
        message: what was got, what was expected and what to do.
        status: of HTTP.
        param: the field of the request.
        code: for programs.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        if self.status >= 500:
            kind = "server_error"
        shown = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": shown}


class _Request(BaseModel):
    """What all requests have."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    model: Annotated[str, Field(min_length=1, max_length=300)]


def _one_or_many(value: Any) -> Any:
    """Read one text as a list of one."""
    return [value] if isinstance(value, str) else value


Text = Annotated[str, Field(max_length=2_000_000)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]],
    Field(max_length=16),
    BeforeValidator(lambda value: [] if value is None else _one_or_many(value)),
]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class _Sampled(_Request):
    """What requests for generated text have."""

    temperature: Annotated[Number, Field(ge=0, le=10)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stops = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Function(BaseModel):
    """The definition of a tool."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=200)]


class Tool(BaseModel):
    """A tool in OpenAI's wrapper."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """The name of a tool that must be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


class NamedTool(BaseModel):
    """A tool that must be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: NamedFunction


class ResponseFormat(BaseModel):
    """Which texts the answer may be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object"]


class ChatRequest(_Sampled):
    """A body of `/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def num_top(self) -> int | None:
        """How many likely tokens are shown beside each; None for no scores at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Sampled):
    """A body of `/v1/completions`."""

    prompt: Annotated[
        list[Text], Field(min_length=1, max_length=MAX_CHOICES), BeforeValidator(_one_or_many)
    ]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def num_top(self) -> int | None:
        """How many likely tokens are shown beside each; None for no scores at all."""
        return self.logprobs


class EmbeddingRequest(_Request):
    """A body of `/v1/embeddings`."""

    input: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=2_000_000)]],
        Field(min_length=1, max_length=MAX_TEXTS),
        BeforeValidator(_one_or_many),
    ]
    encoding_format: Literal["float", "base64"] = "float"


AnyRequest = TypeVar("AnyRequest", bound=_Request)


def read_request(body: bytes, kind: type[AnyRequest]) -> AnyRequest:
    """Read a body.

    Raises:
        ApiError: it is not JSON, or has a field that is wrong or unknown; names the first.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8: byte {error.start} is wrong.") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(value, dict):
        raise ApiError('the body must be a JSON object, such as {"model": ...}.')
    if not _is_clean(value):
        raise ApiError(
            f"the body is nested more than {MAX_DEPTH} deep, or has half of a surrogate pair in a "
            "text. Flatten it, and encode text as UTF-8."
        )
    try:
        given = {k: v for k, v in value.items() if k not in IGNORED and v is not None}
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _is_clean(value: Any) -> bool:
    """Whether a value is not too deep, and all its texts are Unicode."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        texts = [each for each in level if isinstance(each, str)]
        texts += [key for each in level if isinstance(each, dict) for key in each]
        if any("\ud800" <= char <= "\udfff" for text in texts for char in _suspicious(text)):
            return False
        inner = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        )
        level = [each for values in inner for each in values]
        if not level:
            return True
    return False


def _suspicious(text: str) -> str:
    """Return a text that may have half of a surrogate pair, else ""."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text
    return ""


def _refusal(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    """Describe the first thing that is wrong with a request."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [str(part) for part in first["loc"]]
    param = ".".join(names)[:200]
    if first["type"] == "extra_forbidden":
        known = some(sorted(kind.model_fields)) if len(names) > 1 else ", ".join(kind.model_fields)
        return ApiError(
            f"{param!r} is not supported here. Leave it out; known are {known}.",
            param=param,
            code="unknown_parameter",
        )
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return ApiError(f"{param!r} is missing. Give it.", param=param)
    return ApiError(f"{param!r} cannot be used: {problem}. Change it.", param=param)
