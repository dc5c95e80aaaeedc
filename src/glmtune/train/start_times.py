"""How long a run takes from its command to its first step, and with what.

the first step begins after 24.9 s: program 8.1, rows 1.2, weights 9.3, base's answers 3.6, ...
"""

import time


class StartTimes:
    """Times the parts of the start of a run.

    Args:
        began: when it began, in seconds since the epoch; None is the start of this process.
    """

    def __init__(self, began: float | None = None) -> None:
        if began is None:
            import psutil

            began = psutil.Process().create_time()
        self._began = self._last = began
        self._laps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        """Note that a part has ended."""
        now = time.time()
        self._laps.append((name, now - self._last))
        self._last = now

    def describe(self) -> str:
        """Say how long all parts took; those of less than 0.1 s are left out."""
        parts = [f"{name} {took:.1f}" for name, took in self._laps if took >= 0.1]
        total = self._last - self._began
        return f"the first step begins after {total:.1f} s: {', '.join(parts)}"
