"""All surfaces. A new one (a command, a page, a server) is one more entry in a list of these."""

from collections.abc import Iterator, Sequence

from tests.fuzz import folders, programs, recipes, requests, rows
from tests.fuzz.surface import Surface

SURFACES: Sequence[Surface] = (
    *recipes.SURFACES,
    *rows.SURFACES,
    *programs.SURFACES,
    *folders.SURFACES,
    *requests.SURFACES,
)


def shares(count: int) -> Iterator[tuple[Surface, int]]:
    """Distribute a number of inputs over the surfaces; each gets at least one."""
    total = sum(surface.share for surface in SURFACES)
    for surface in SURFACES:
        yield surface, max(1, round(count * surface.share / total))
