"""Seeded mutations of files: of the values in JSON, and of bytes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2.0, 0.5, -0.0, 10**9, -(10**9), 2**63, 10**30, 10**400),
    *(1e-320, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "32", "true", "(", "\ud800", "a\0b", "../x", "/etc/passwd", "蓝", "x" * 5000),
    *([], [1], ["a", None], [[]], {}, {"a": 1}, {"": []}),
)


def mutate_json(path: Path, random: Random) -> None:
    """Change one to three values, keys or types of a JSON file."""
    content = mutate_value(json.loads(path.read_text(encoding="utf-8")), random)
    if random.random() < 0.03:
        path.write_text('{"a":' * random.choice((70, 100_000)), encoding="utf-8")
        return
    path.write_text(json.dumps(content), encoding="utf-8")


def mutate_value(content: Any, random: Random) -> Any:
    """Change one to three values, keys or types of parsed JSON; the original may change too."""
    for _ in range(random.randint(1, 3)):
        content = _changed(content, random)
    return content


def nasty(random: Random) -> Any:
    """Choose a value; a copy, since lists and objects are mutated again."""
    return copy.deepcopy(random.choice(NASTY))


def _changed(content: Any, random: Random) -> Any:
    places = list(_places(content))
    if not places or random.random() < 0.02:
        return nasty(random)
    parent, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[random.choice(("x", "dtype", "num_labels", "r", str(key) + "s"))] = parent[key]
        case 2 if isinstance(parent[key], float) or _is_size(parent[key]):
            parent[key] *= random.choice((-1, 2, 0.5, 10**6))
        case _:
            parent[key] = nasty(random)
    return content


def _is_size(value: Any) -> bool:
    """Whether an integer can be multiplied by a fraction."""
    return isinstance(value, int) and abs(value) < 2**63


def _places(content: Any) -> Any:
    keys: Any = ()
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = range(len(content))
    for key in keys:
        yield content, key
        yield from _places(content[key])


def mutate_bytes(path: Path, random: Random) -> None:
    """Flip, cut, insert, blank or exchange bytes of a file; often near its start."""
    content = bytearray(path.read_bytes())
    reach = min(len(content), random.choice((64, 2000, len(content)))) or 1
    at = random.randrange(reach)
    match random.randrange(7):
        case 0:
            content = content[:at]
        case 1:
            content[at:at] = random.randbytes(random.randint(1, 40))
        case 2:
            content[at : at + random.randint(1, 400)] = bytes(random.randint(0, 400))
        case 3:
            size = random.randint(1, 100)
            content[at : at + size], content[-size:] = content[-size:], content[at : at + size]
        case 4:
            content = bytearray(random.randbytes(random.randint(0, 100)))
        case _:
            for _ in range(random.randint(1, 8)):
                if content:
                    content[random.randrange(reach) % len(content)] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(content))


Mutation = Callable[[Path, Random], None]
