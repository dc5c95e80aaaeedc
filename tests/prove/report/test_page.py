"""The pages hold everything a run did and proved, and nothing that data could do to a reader."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from glmtune.errors import OutputError
from glmtune.prove.proof import ALIVE, FORGETS, MERGED, SAVED, STOPS, TEMPLATE, Proof
from glmtune.prove.report.facts import ReportFacts
from glmtune.prove.report.page import rewrite_report, write_report, write_rows_page
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe

VOID = {"meta", "link", "br", "img", "input", "path"}


class Page(HTMLParser):
    """A page as a browser parses it, as far as the tests need."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data


def proof_lines(html: str) -> dict[str, str]:
    """The verdict next to each proof."""
    found = re.findall(r'class="verdict">. ([a-z ]+)</span><div><b>([^<]+)</b>', html)
    return {name: verdict for verdict, name in found}


def test_the_report_shows_everything_that_is_known(run_dir: Path, facts: ReportFacts) -> None:
    path = write_report(run_dir, facts)

    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert path == run_dir / "report.html"
    for text in (
        "name_or_path: ./chatglm3-6b",  # the recipe
        "a" * 64,
        "b" * 64,
        "1,949,696 of 6,245,533,696 parameters trained",
        "1 h 2 min",
        "1.75",  # held-out loss
        "3.00 GiB",
        "not finite",  # step 31
        "no-stop",
        "The logits differ.",
        "transformers",
        "glmtune train run/recipe.yaml output.dir=run-again",
        "chatglm3-6b · lora r=8 · 8 rows · 2026-11-27 · 1 h 2 min",
        "Ended 2026-11-27 20:35:11 UTC.",
        "at most 0.25",  # a limit, beside what was measured
        "stopped at the token limit",
    ):
        assert text in page.text, text
    assert "Missing" not in page.text
    assert html.index("no-stop") < html.index("duplicate")  # the most severe first
    changed, complete = page.text.index("data.eval_fraction"), page.text.index("All keys")
    assert changed < complete  # what was chosen comes before what every recipe has


def test_the_report_tells_neither_paths_nor_variables_of_the_machine(
    run_dir: Path, facts: ReportFacts
) -> None:
    secret = {"environment": "TOKEN=abc", "system": "Linux", "GPUs": "none", "memory": "8 GiB"}
    example = replace(facts.example, place="/home/me/rows.json:3") if facts.example else None
    told = facts.model_copy(update={"machine": secret, "example": example})

    html = write_report(run_dir, told).read_text(encoding="utf-8")

    assert str(run_dir.parent) in (run_dir / "recipe.yaml").read_text(encoding="utf-8")
    assert str(run_dir.parent) not in html
    assert "TOKEN" not in html
    assert "/home/me" not in html
    assert "rows.json:3" in html
    assert "of 8 GiB in this machine" in html


def test_a_passed_proof_is_a_sentence_with_its_numbers_folded(
    run_dir: Path, facts: ReportFacts
) -> None:
    proofs = (Proof(STOPS, "passed", "8 of 8 ended"), Proof(FORGETS, "failed", "it rose by 0.7"))

    html = write_report(run_dir, facts.model_copy(update={"proofs": proofs})).read_text("utf-8")

    assert "Its answers end by themselves.<details><summary>numbers</summary>8 of 8" in html
    assert "Limit: at least 50% of the answers must end." in html
    assert "<details open><summary>numbers</summary>it rose by 0.7" in html  # a failure is open


def test_the_report_offers_what_comes_next_with_a_button_to_copy_it(
    run_dir: Path, facts: ReportFacts
) -> None:
    saved, merged = Proof(SAVED, "passed"), Proof(MERGED, "passed")
    broken = write_report(run_dir, facts).read_text("utf-8")  # its saved files failed their proof
    whole = write_report(run_dir, facts.model_copy(update={"proofs": (saved, merged)}))

    html = whole.read_text(encoding="utf-8")
    assert "glmtune chat" not in broken
    for line in (
        "glmtune chat run",
        "glmtune predict rows.json --model run -o answers.jsonl",
        "glmtune merge run -o run-merged",
        "glmtune train run/recipe.yaml output.dir=run-again",
    ):
        assert f'<code>{line}</code><button type="button" data-copy="{line}"' in html


def write_lines(run_dir: Path, lines: list[dict[str, Any]], **sections: Any) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")
    tree = {
        "model": {"name_or_path": "nano"}, "data": {"train": "a.json", "eval": "b.json"},
        "output": {"dir": "out"}, **sections,
    }  # fmt: skip
    kind = PretrainRecipe if "objective" in sections else Recipe
    (run_dir / "recipe.yaml").write_text(build_recipe(tree, kind=kind).to_yaml(), encoding="utf-8")


def test_a_report_of_preferences_tells_rewards(run_dir: Path, facts: ReportFacts) -> None:
    values = {"accuracy": 0.75, "margin": 0.5, "chosen": 0.3, "rejected": -0.2}
    rewards = {f"{at}reward_{key}": value for at in ("", "eval_") for key, value in values.items()}
    steps = [{"step": step, "loss": 0.6, **rewards} for step in (1, 2)]
    write_lines(run_dir, steps, preference={"stage": "dpo"})

    html = write_report(run_dir, facts).read_text(encoding="utf-8")

    text = Page(html).text
    assert "nano · dpo by lora r=8 · 8 pairs" in text
    assert re.search(r"Reward accuracy, held out</span><b>75 %</b>", html)
    assert "better 0.3, worse -0.2" in text
    for chart in ("Reward margin", "Reward accuracy", "Rewards of the answers"):
        assert f"<b>{chart}</b>" in html


def test_a_report_of_a_pretraining_tells_perplexities_and_its_own_command(
    run_dir: Path, facts: ReportFacts
) -> None:
    steps = [{"step": s, "loss": 4 / s, "perplexity_token": 90.5 / s} for s in (1, 2)]
    write_lines(run_dir, steps, objective={}, adapter={"method": "full"})

    html = write_report(run_dir, facts).read_text(encoding="utf-8")

    assert "nano · pre-training by full · 8 examples" in Page(html).text
    assert re.search(r"Perplexity, token</span><b>45.25</b>", html)
    assert "glmtune pretrain run/recipe.yaml output.dir=run-again" in html
    assert "glmtune train run/recipe.yaml" not in html
    assert "glmtune chat" not in html  # it completes texts


def test_a_report_of_an_evaluation_has_nothing_to_talk_to(
    run_dir: Path, facts: ReportFacts
) -> None:
    write_lines(run_dir, [{"step": 0, "eval_loss": 1.5}], adapter={"method": "none"})

    html = write_report(run_dir, facts).read_text(encoding="utf-8")

    assert "nano · evaluated, not trained" in Page(html).text
    assert re.search(r"Held-out loss</span><b>1.5</b>", html)
    assert "glmtune chat" not in html


def test_a_proof_that_is_missing_is_shown_as_not_run(run_dir: Path, facts: ReportFacts) -> None:
    html = write_report(run_dir, facts).read_text(encoding="utf-8")

    verdicts = proof_lines(html)
    assert verdicts[ALIVE] == "passed"
    assert verdicts["reloaded from disk it is the same"] == "failed"
    assert verdicts[TEMPLATE] == "not run"
    assert verdicts[STOPS] == "not run"
    assert "1 of 9 passed" in Page(html).text


def test_a_proof_of_another_kind_is_shown_too(run_dir: Path, facts: ReportFacts) -> None:
    more = facts.model_copy(update={"proofs": (Proof("nothing forgotten", "passed", "0.1 %"),)})

    html = write_report(run_dir, more).read_text(encoding="utf-8")

    assert proof_lines(html)["nothing forgotten"] == "passed"
    assert proof_lines(html)[ALIVE] == "not run"


def test_a_run_without_facts_shows_what_is_missing_and_no_passed_proof(run_dir: Path) -> None:
    html = rewrite_report(run_dir).read_text(encoding="utf-8")

    shown = Page(html).text
    assert set(proof_lines(html).values()) == {"not run"}
    for text in (
        "has no report.json",
        "No sample answers were recorded.",
        "No example row was recorded.",
        "How many rows were used was not recorded.",
        "Lint did not check the data.",
        "The machine was not recorded.",
        "The library versions were not recorded.",
    ):
        assert text in shown, text
    assert "Loss in nats" not in shown
    assert 'aria-label="Loss in nats per learned token: training from 4' in html  # curves are there


def test_a_check_that_found_nothing_differs_from_a_check_that_did_not_run(
    run_dir: Path, facts: ReportFacts
) -> None:
    clean = facts.model_copy(update={"lint": (), "samples": ()})

    text = Page(write_report(run_dir, clean).read_text(encoding="utf-8")).text

    assert "Lint found no problems." in text
    assert "There were no prompts to answer." in text


def test_the_report_can_be_made_again_from_the_folder_alone(
    run_dir: Path, facts: ReportFacts
) -> None:
    first = write_report(run_dir, facts).read_bytes()
    (run_dir / "report.html").unlink()

    assert rewrite_report(run_dir).read_bytes() == first


def test_facts_of_another_run_in_the_same_folder_are_not_used(
    run_dir: Path, facts: ReportFacts
) -> None:
    write_report(run_dir, facts)
    recipe = run_dir / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("0.1", "0.2"), encoding="utf-8")

    html = rewrite_report(run_dir).read_text(encoding="utf-8")

    assert "belongs to a run with another recipe" in Page(html).text
    assert set(proof_lines(html).values()) == {"not run"}


def test_the_report_of_a_stopped_run_is_marked_as_stopped(
    run_dir: Path, facts: ReportFacts
) -> None:
    stopped = facts.model_copy(update={"is_finished": False, "num_steps": 100})

    text = Page(write_report(run_dir, stopped).read_text(encoding="utf-8")).text

    assert "The run was stopped after step 40 of 100." in text
    assert "Continue this runglmtune train run/recipe.yaml output.dir=run --resume" in text


def test_a_damaged_facts_file_is_named_with_what_to_do(run_dir: Path) -> None:
    (run_dir / "report.json").write_text('{"recipe_sha256": "', encoding="utf-8")

    with pytest.raises(OutputError, match=r"report\.json: expected the JSON .* delete it to make"):
        rewrite_report(run_dir)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no recipe\.yaml in it, so it is not the folder of a"):
        rewrite_report(tmp_path)


def test_the_loss_curve_is_a_file_of_its_own(run_dir: Path, facts: ReportFacts) -> None:
    write_report(run_dir, facts)

    svg = ElementTree.parse(run_dir / "loss.svg").getroot()
    texts = ["".join(each.itertext()) for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:3] == ["Loss (nats per learned token)", "training", "held out"]
    assert texts[-1] == "optimizer step"
    classes = [each.get("class") for each in svg.iter("{http://www.w3.org/2000/svg}path")]
    assert {"grid", "curve c0", "curve c1"} <= set(classes)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    [curve, _] = [each.get("d") for each in svg.iter() if "curve" in each.get("class", "")]
    assert f'd="{curve}"' in page  # one renderer for both


def test_a_run_without_losses_has_no_curve(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").unlink()

    rewrite_report(run_dir)

    assert not (run_dir / "loss.svg").exists()


def check_harmless(html: str) -> None:
    """No tag comes from data, and nothing is loaded from anywhere."""
    page = Page(html)
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "iframe")] == ["script"]
    handlers = [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert handlers == []
    links = [
        attrs[name]
        for _, attrs in page.tags
        for name in ("src", "href")
        if name in attrs and not str(attrs[name]).startswith("#")
    ]
    assert links == ["data:,"]
    [policy] = [
        attrs["content"]
        for tag, attrs in page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert str(policy).startswith("default-src 'none';")


def test_markup_in_data_stays_text_in_the_report(run_dir: Path, facts: ReportFacts) -> None:
    html = write_report(run_dir, facts).read_text(encoding="utf-8")

    check_harmless(html)
    # recipe, lint place and excerpt, proof, prompt, expected, base answer, place of the example
    assert html.count("&lt;script&gt;document.title") >= 8


ROWS: list[dict[str, Any]] = [
    {"instruction": "翻译 <script>alert(1)</script>", "input": "", "output": "鑫 <img src=x>"},
    {"instruction": "写一首诗", "input": "", "output": "春天来了，" * 40},
    {"instruction": "没有回答 <b>", "input": "", "output": ""},
]


def rows_page(model: Path, folder: Path, **which: Any) -> str:
    rows = folder / "<i>rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False, indent=0), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(rows), "max_length": 120, "bad_rows": "skip"},
        "output": {"dir": "out"},
    }
    path = write_rows_page(build_recipe(tree), folder / "pages" / "rows.html", **which)
    return path.read_text(encoding="utf-8")


def test_the_page_of_rows_shows_the_requested_row_and_the_most_problematic(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    html = rows_page(tiny_model_dir, tmp_path, first=1)

    text = Page(html).text
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "Totals", "Row 1", "Longest", "Too long: cut, shortened or left out",
        "Most byte tokens", "Nothing learned", "Invalid rows",
    ]  # fmt: skip
    assert "tokens are more than data.max_length" in text
    assert "the answer is empty" in text
    assert re.search(r'<span class="t l" data-p="\d+" data-i="\d+ \d+ \d+">鑫</span>', html)
    assert 'class="t x"' in html


def test_markup_in_data_stays_text_in_the_page_of_rows(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    html = rows_page(tiny_model_dir, tmp_path, first=1, count=3)

    check_harmless(html)
    text = Page(html).text
    assert "<script>alert(1)</script>" in text
    assert "没有回答 <b>" in text


def test_the_page_of_rows_reports_that_there_is_no_such_row(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    text = Page(rows_page(tiny_model_dir, tmp_path, first=9)).text

    assert "There is no usable row from row 9 on" in text
