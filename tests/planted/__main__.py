"""Plant every fault, and write docs/planted.md from what was said of each.

python -m tests.planted            all faults and all healthy kinds
python -m tests.planted -k rows    some of them, printed only; arguments are those of pytest
"""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "planted.md"
MOST_CHARS = 110  # of what was said

# test module -> its title, and when its faults are caught
AREAS = {
    "test_rows": ("Rows", "before training, by `glmtune lint` and by `train`"),
    "test_fits": ("Rows, as the base sees them", "before the first step"),
    "test_templates": ("Prompts and packs", "before the first step"),
    "test_runs": ("Settings", "before the first step; where nothing moved, also at the end"),
    "test_arithmetic": ("Arithmetic", "before the first step, at the step, or by the proofs"),
    "test_resume": ("Between a run and its resumption", "when it is resumed"),
    "test_artefacts": ("What a run left", "when it is opened"),
}
HEAD = """# Planted faults

Most ways in which a fine-tuning goes wrong raise no error: the curve looks right and the model is
wrong. `tests/planted` holds such faults as data, plants each, and says what a user sees. This
page is written by `python -m tests.planted` from what was said; CI runs the same tests.
"""
MISSES = """
## What is not noticed

- Digits that were altered where no sum and no numbered list shows it, and facts that are wrong.
- A few shifted rows among many right ones, and labels of a classification that were shuffled: they
  have no words in common with their questions, so only the base can see it, if it can judge.
- Answers that were all cut, and so short that none has a full stop inside: again only the base.
- A set of fewer than 12 rows has no habits, and one too small for a sample is not judged.
- A learning rate in the usual range that is wrong for these rows: only the curves show it.
- A tensor edited together with its checksum, and adapters of other tools, which have none.
- A `tokenizer.json` that was edited so that ids stay the same: only the ids are compared.
- What was planted here was thought of by the authors of the checks. Others plant other faults.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test: of a fault by its name, or of a healthy kind."""

    area: str
    name: str
    is_healthy: bool
    has_passed: bool
    said: str
    seconds: float


class Recorder:
    """Collects what each test of a fault said."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" or report.skipped:
            return
        area = Path(report.nodeid.split("::")[0]).stem
        name = report.nodeid.partition("[")[2].removesuffix("]")
        test = report.nodeid.partition("::")[2]
        if not name or area not in AREAS:
            return
        said = dict(report.user_properties).get("said", "")
        is_healthy = "healthy" in test.partition("[")[0] or "without_a_word" in test
        self.outcomes.append(
            Outcome(area, _decoded(name), is_healthy, report.passed, said, report.duration)
        )


def _decoded(name: str) -> str:
    return name.encode().decode("unicode_escape") if "\\u" in name else name


def render(outcomes: list[Outcome]) -> str:
    """Return the page."""
    faults = [each for each in outcomes if not each.is_healthy]
    healthy = [each for each in outcomes if each.is_healthy]
    caught = sum(each.has_passed for each in faults)
    quiet = sum(each.has_passed for each in healthy)
    lines = [
        HEAD,
        f"**{caught} of {len(faults)} faults are named with cause and remedy; {quiet} of "
        f"{len(healthy)} healthy kinds of rows and runs raise no alarm.**",
    ]
    for area, (title, when) in AREAS.items():
        own = [each for each in faults if each.area == area]
        if not own:
            continue
        seconds = sum(each.seconds for each in own) / len(own)
        lines.append(f"\n## {title}\n\nCaught {when}; {seconds:.2g} s each on average.\n")
        lines.append("| fault | caught | what is said |\n| --- | --- | --- |")
        lines += [
            f"| {each.name} | {'yes' if each.has_passed else '**no**'} | {_short(each.said)} |"
            for each in own
        ]
    lines.append("\n## Healthy rows and runs\n")
    lines += [
        f"- {each.name}{'' if each.has_passed else ': **a false alarm**'}" for each in healthy
    ]
    return "\n".join(lines) + "\n" + MISSES


TEMPORARY = re.compile(r"\S*/pytest-of-[^/]+/pytest-\d+/[^/]+/")  # another one in each run


def _short(text: str) -> str:
    text = TEMPORARY.sub("", text)
    line = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return line if len(line) <= MOST_CHARS else f"{line[:MOST_CHARS].rstrip()}..."


def main() -> int:
    recorder, arguments = Recorder(), sys.argv[1:]
    began = time.monotonic()
    tests = ["tests/planted", "tests/prove/test_fits.py"]
    failed = pytest.main([*tests, "-q", "-p", "no:cacheprovider", *arguments], plugins=[recorder])
    page = render(recorder.outcomes)
    print(f"{len(recorder.outcomes)} planted in {time.monotonic() - began:.0f} s")
    if arguments:
        print(page)
    else:
        PAGE.write_text(page, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
