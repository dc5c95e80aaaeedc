"""A surface: what reads something from outside, and how it is tried with a mutated input."""

import logging
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from glmtune.errors import GlmtuneError

SLOWEST_SECONDS = 20.0  # of the processor, for one input
MOST_BYTES = 2**30  # by which one input may let the process grow
LONGEST_MESSAGE = 20_000

Attempt = Callable[[Random, Path], object]
"""(random numbers of this input, an empty folder) -> makes an input and uses it as commands do."""


class Healthy:
    """What surfaces start from: a tiny model, its tokenizer and its template.

    Args:
        folder: to write into.
        model: the folder of a tiny ChatGLM; None makes one.
        llama: the folder of a tiny model of another family, None if there is none.
    """

    def __init__(self, folder: Path, model: Path | None = None, llama: Path | None = None) -> None:
        self.folder = folder
        self.llama = llama
        self._model = model

    @cached_property
    def model(self) -> Path:
        """The folder of a tiny ChatGLM."""
        from tests.tiny_model import make_model, make_tokenizer

        copy = self.folder / "model"
        if self._model is not None:
            shutil.copytree(self._model, copy)
            return copy
        copy.mkdir()
        return make_model(copy, make_tokenizer(copy))

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        from glmtune.model.load import load_tokenizer

        return load_tokenizer(self.model)

    @cached_property
    def template(self) -> Any:
        """Its template."""
        from glmtune.template.select import template_for

        return template_for(self.tokenizer)


@dataclass(frozen=True)
class Surface:
    """What reads something from outside.

    Attributes:
        name: of the surface.
        prepare: makes what an attempt needs once.
        share: of all inputs, relative to that of other surfaces.
        refused: a share of inputs that are at least refused, or they were harmless.
    """

    name: str
    prepare: Callable[[Healthy], Attempt]
    share: int
    refused: float = 0.1


@dataclass
class Outcome:
    """What became of the inputs of a surface.

    Attributes:
        num_inputs: tried.
        num_refused: with an error in sentences.
        faults: by kind, the first seed and what came out.
        counts: how often each kind was met.
        slowest_seconds: of the processor, for one input.
    """

    num_inputs: int = 0
    num_refused: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    slowest_seconds: float = 0.0

    def merge(self, other: "Outcome") -> None:
        """Add what became of more inputs."""
        self.num_inputs += other.num_inputs
        self.num_refused += other.num_refused
        self.faults = other.faults | self.faults
        for kind, number in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + number
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)

    def add(self, kind: str, seed: str, what: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.faults.setdefault(kind, f"input {seed}: {what}")


def try_surface(
    surface: Surface, attempt: Attempt, folder: Path, seed: str, numbers: Iterator[int] | range
) -> Outcome:
    """Try inputs one after another; the same seed and number make the same input."""
    outcome = Outcome()
    with quiet():
        for number in numbers:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _try(outcome, attempt, folder, f"{seed} {surface.name} {number}")
    return outcome


def _try(outcome: Outcome, attempt: Attempt, folder: Path, seed: str) -> None:
    began, size = time.process_time(), peak_bytes()
    outcome.num_inputs += 1
    try:
        attempt(Random(seed), folder)
    except GlmtuneError as error:
        outcome.num_refused += 1
        _check_message(outcome, str(error), seed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        trace = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in trace if "/glmtune/" in frame.filename] or trace
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        kind = f"{type(error).__name__} in {place}"
        outcome.add(
            kind, seed, f"{error!r:.300} {''.join(traceback.format_tb(error.__traceback__)[-3:])}"
        )
    seconds = time.process_time() - began
    outcome.slowest_seconds = max(outcome.slowest_seconds, seconds)
    if seconds > SLOWEST_SECONDS:
        outcome.add("slow", seed, f"took {seconds:.0f} s")
    if peak_bytes() - size > MOST_BYTES:
        outcome.add("memory", seed, f"took {(peak_bytes() - size) / 2**30:.1f} GiB")
    if (folder / CANARY).exists():
        outcome.add("code run", seed, f"{CANARY} was written")


CANARY = "code-was-run"  # a file that pickles and YAML tags of inputs would write


def _check_message(outcome: Outcome, message: str, seed: str) -> None:
    try:
        message.encode("utf-8", "surrogateescape")  # as names of files come from the system
    except UnicodeEncodeError:
        outcome.add("message that cannot be printed", seed, f"{message!r:.300}")
    if not message.strip() or len(message) > LONGEST_MESSAGE:
        outcome.add("message too long or empty", seed, f"{len(message)}: {message[:200]!r}")


def peak_bytes() -> int:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def quiet() -> Iterator[None]:
    """Neither logs nor warnings of thousands of damaged files."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
