"""Try a kernel once before it is used, and fall back to torch with one line in the log."""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def works(what: str, device: torch.device, check: Callable[[], None]) -> bool:
    """Whether a kernel in Triton gives what torch gives on a device; a failure is logged.

    Args:
        what: the kernel computes, to begin a sentence with.
        device: to try it on.
        check: runs the kernel, and raises if it fails or gives other numbers.
    """
    if device.type != "cuda":
        return False
    try:
        check()
    except Exception as error:  # a compiler for many cards may fail in any way
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
        # The first line of a compiler's error is a place, the last one says what is wrong.
        reason = " ... ".join(dict.fromkeys((lines[0], lines[-1])))
        logger.info("%s is computed by torch on %s, without Triton: %s", what, device, reason)
        return False
    return True
