"""Make the packs of the next step while a GPU works on those of this one.

    thread      packs 1   packs 2   packs 3
    loop                  step 1    step 2    step 3

A step ends with the host waiting for the GPU. Packs made after it would leave the GPU idle.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def one_ahead(items: Iterator[Made]) -> Iterator[Made]:
    """Yield items in order, and make one more in another thread meanwhile.

    What an item raises is raised where it is asked for, as without a thread.

    Args:
        items: give the same whenever each is asked for, and use nothing that the caller changes.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="packs") as thread:
        end = object()
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
