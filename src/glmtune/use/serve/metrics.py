"""Count what a server does, in the text format of Prometheus."""

import threading
from collections.abc import Iterator, Mapping

_HELP = {
    "requests_total": "Requests by endpoint and status.",
    "prompt_tokens_total": "Tokens of prompts.",
    "cached_prompt_tokens_total": "Tokens of prompts whose keys and values were reused.",
    "completion_tokens_total": "Tokens that were generated.",
    "steps_total": "Steps of the generator.",
    "preemptions_total": "Long answers that made room for a waiting request.",
    "cancelled_total": "Requests whose client hung up.",
    "first_token_seconds": "Time from a request to its first token.",
    "request_seconds": "Time from a request to the end of its answer.",
    "running": "Sequences that are generated now.",
    "waiting": "Sequences that wait for a place.",
}
_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms, which any thread may change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[str, list[float]] = {}  # counts by bound, then count and sum

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + value

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to a histogram."""
        with self._lock:
            counts = self._histograms.setdefault(name, [0.0] * (len(_BOUNDS) + 2))
            for index, bound in enumerate(_BOUNDS):
                counts[index] += seconds <= bound
            counts[-2] += 1
            counts[-1] += seconds

    def mean(self, name: str) -> float:
        """Return the mean of a histogram; 0 if it is empty."""
        with self._lock:
            counts = self._histograms.get(name)
            return counts[-1] / counts[-2] if counts else 0.0

    def value(self, name: str, **labels: str) -> float:
        """Return a counter."""
        with self._lock:
            return self._counters.get((name, tuple(sorted(labels.items()))), 0.0)

    def text(self, gauges: Mapping[str, float]) -> str:
        """Write everything, and values of this moment, for Prometheus."""
        with self._lock:
            lines = [*self._lines(gauges)]
        return "\n".join(lines) + "\n"

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        for name in dict.fromkeys(name for name, _ in sorted(self._counters)):
            yield f"# HELP glmtune_{name} {_HELP[name]}"
            yield f"# TYPE glmtune_{name} counter"
            for (other, labels), value in sorted(self._counters.items()):
                if other == name:
                    shown = ",".join(f'{key}="{each}"' for key, each in labels)
                    yield f"glmtune_{name}{f'{{{shown}}}' if shown else ''} {value:g}"
        for name, counts in sorted(self._histograms.items()):
            yield f"# HELP glmtune_{name} {_HELP[name]}"
            yield f"# TYPE glmtune_{name} histogram"
            for bound, count in zip(_BOUNDS, counts, strict=False):
                yield f'glmtune_{name}_bucket{{le="{bound:g}"}} {count:g}'
            yield f'glmtune_{name}_bucket{{le="+Inf"}} {counts[-2]:g}'
            yield f"glmtune_{name}_count {counts[-2]:g}"
            yield f"glmtune_{name}_sum {counts[-1]:g}"
        for name, value in gauges.items():
            yield f"# HELP glmtune_{name} {_HELP[name]}"
            yield f"# TYPE glmtune_{name} gauge"
            yield f"glmtune_{name} {value:g}"
