r"""Write a tool call as ChatGLM3 does, and read it back: Python literals, which are never run.

    {"city": "北京"}  ->  ```python\ntool_call(city='北京')\n```  ->  {"city": "北京"}

Every JSON object survives the way there and back; what a call cannot say is refused by name.

Source: ChatGLM3, PROMPT.md; the reference is spec section 8.
"""

import ast
import json
import keyword
import math
import unicodedata
import warnings
from collections.abc import Mapping
from typing import Any

from glmtune.errors import NotUnicodeError, TemplateError

TOOL_FUNCTION = "tool_call"  # the name that every ChatGLM3 call has
MAX_DEPTH = 100  # of lists and objects in each other; Python's parser reads 198


def render_tool_call(arguments: Mapping[str, Any]) -> str:
    r"""Render the content of an assistant message that calls a tool.

    Names that Python cannot write as keywords, such as `from` or `first-name`, are written as
    `**{...}`, which the original code's `eval` reads too:

    >>> print(render_tool_call({"city": "北京", "days": 2}))
    ```python
    tool_call(city='北京', days=2)
    ```
    >>> render_tool_call({"from": "北京", "to": "上海"}).split("\n")[1]
    "tool_call(**{'from': '北京', 'to': '上海'})"

    Args:
        arguments: a JSON object: text, finite numbers, booleans, None, lists and objects.

    Raises:
        TemplateError: a value is not JSON, or cannot be read back; names the argument.
    """
    return f"```python\n{TOOL_FUNCTION}({render_arguments(arguments)})\n```"


def render_arguments(arguments: Mapping[str, Any]) -> str:
    """Render arguments as they stand between the parentheses of a call.

    Raises:
        TemplateError: as for `render_tool_call`.
    """
    values = {name: _literal_of(value, (name,)) for name, value in arguments.items()}
    if all(isinstance(name, str) and _is_keyword(name) for name in values):
        return ", ".join(f"{name}={value}" for name, value in values.items())
    pairs = ", ".join(f"{_name_literal(name, ())}: {value}" for name, value in values.items())
    return f"**{{{pairs}}}"


def _is_keyword(name: str) -> bool:
    """Whether Python reads a name back unchanged in `call(name=value)`.

    Python folds names by NFKC, so a full-width `ａ` would come back as `a`.
    """
    return (
        name.isidentifier()
        and not keyword.iskeyword(name)
        and name != "__debug__"
        and (name.isascii() or unicodedata.is_normalized("NFKC", name))
    )


def _literal_of(value: Any, path: tuple[Any, ...]) -> str:
    """Write a JSON value as Python; for plain types this is their `repr`."""
    if len(path) > MAX_DEPTH:
        raise TemplateError(
            f"{_where(path[:3])} is nested more than {MAX_DEPTH} deep. Flatten it, or pass the "
            "inner part as JSON text."
        )
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        if not is_unicode(value):
            raise NotUnicodeError(half_a_pair(value, _where(path)))
        return str.__repr__(value)
    if isinstance(value, (int, float)):
        return _number_literal(value, path)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal_of(v, (*path, i)) for i, v in enumerate(value))}]"
    if isinstance(value, Mapping):
        pairs = (
            f"{_name_literal(k, path)}: {_literal_of(v, (*path, k))}" for k, v in value.items()
        )
        return f"{{{', '.join(pairs)}}}"
    raise TemplateError(
        f"{_where(path)} is {shown(value)}, expected a JSON value: text, a number, true, false, "
        "null, a list or an object. Convert it first."
    )


def _name_literal(name: Any, path: tuple[Any, ...]) -> str:
    if isinstance(name, str) and is_unicode(name):
        return str.__repr__(name)
    inside = f" in {_where(path)}" if path else ""
    if isinstance(name, str):
        raise NotUnicodeError(half_a_pair(name, f"a name{inside}"))
    raise TemplateError(
        f"a name{inside} is {shown(name)}, expected text: JSON has no other names. Convert it."
    )


def _number_literal(value: float, path: tuple[Any, ...]) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TemplateError(
                f"{_where(path)} is {value}, which JSON cannot represent. Use null or text."
            )
        return float.__repr__(value)
    try:
        return int.__repr__(value)
    except ValueError:
        raise TemplateError(
            f"{_where(path)} has more digits than Python reads. Pass it as text."
        ) from None


def _where(path: tuple[Any, ...]) -> str:
    """Name a value of the arguments: "the argument 'a.b[2]'"."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}"[:40] for step in path[:10])
    return f"the argument {''.join(steps).removeprefix('.')!r}"


def parse_tool_call(text: str) -> dict[str, Any]:
    r"""Parse the arguments of a fenced `tool_call(...)`, the inverse of `render_tool_call`.

    The call is Python source written by a model, so it is parsed as a syntax tree of literals
    and never evaluated. The first and the last line are taken as the fence without a check.
    Arguments must be keywords or `**{...}`, and their values literals that JSON can represent.

    >>> parse_tool_call("```python\ntool_call(city='北京', **{'from': 2})\n```")
    {'city': '北京', 'from': 2}

    Raises:
        ValueError: the text is not such a call; the message says why.
    """
    source = "\n".join(text.strip().split("\n")[1:-1]).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape such as '\d' is read as it stands
            call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a {TOOL_FUNCTION}(...) between two fence lines: {error}") from error
    if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != TOOL_FUNCTION:
        raise ValueError(f"expected a call of {TOOL_FUNCTION}, got {source[:80]!r}")
    if call.args:
        raise ValueError(f"{TOOL_FUNCTION} takes named arguments only")
    arguments: dict[str, Any] = {}
    for each in call.keywords:
        for name, value in _named_nodes(each):
            if name in arguments:
                raise ValueError(f"{TOOL_FUNCTION} takes each argument once, got {name!r} twice")
            arguments[name] = _literal(name, value)
    return arguments


def _named_nodes(argument: ast.keyword) -> list[tuple[str, ast.expr]]:
    """Return the names and values of `name=value`, or those of `**{'name': value}`."""
    if argument.arg is not None:
        return [(argument.arg, argument.value)]
    if not isinstance(argument.value, ast.Dict):
        raise ValueError(f"after ** {TOOL_FUNCTION} takes a literal object only")
    named = []
    for key, value in zip(argument.value.keys, argument.value.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise ValueError(f"the names of the arguments of {TOOL_FUNCTION} must be texts")
        named.append((key.value, value))
    return named


def _literal(name: str, node: ast.expr) -> Any:
    """Evaluate a literal that JSON can represent, and that `render_tool_call` would write."""
    try:
        value = json.loads(json.dumps(ast.literal_eval(node), allow_nan=False))
        render_arguments({name: value})
    except (ValueError, TypeError, RecursionError, MemoryError, TemplateError) as error:
        raise ValueError(
            f"the value of {name[:60]!r} is not a literal that JSON can represent"
        ) from error
    return value


def check_tool_name(name: Any) -> None:
    """Refuse a tool's name that a reply could not repeat: it is the first line of the reply.

    Raises:
        TemplateError: the name is not text, is empty, or has a line break or space around it.
    """
    if not isinstance(name, str):
        problem = f"is {shown(name)}, expected text"
    elif not name.strip():
        problem = "is empty"
    elif "\n" in name or name != name.strip():
        problem = "has a line break, or white space around it"
    elif not is_unicode(name):
        raise NotUnicodeError(half_a_pair(name, "the name of a tool"))
    else:
        return
    quoted = f" {name[:60]!r}" if isinstance(name, str) else ""
    raise TemplateError(
        f"the name of a tool{quoted} {problem}. A reply names its tool in its first line, so write "
        "the name as one line, here and in the definition of the tool."
    )


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which no tokenizer encodes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def half_a_pair(text: str, what: str) -> str:
    """Return the error message about a text that is not Unicode."""
    place = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return (
        f"{what} has half of a surrogate pair, {text[place]!r}, as its character {place + 1}, "
        "which is not a character. Decode the text again as UTF-8."
    )


def shown(value: Any) -> str:
    """Name a value of an unexpected type in an error, in few words whatever it holds."""
    if isinstance(value, str):
        return repr(value[:60])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    return f"a value of type {type(value).__name__}"
