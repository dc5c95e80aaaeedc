"""`glmtune inspect` shows a row as training sees it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.cli.printing import flowing_text, print_row, printable
from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.pairs import encode_pairs
from glmtune.errors import CheckpointError, DataError, RecipeError
from glmtune.inspect.objective import OBJECTIVES
from glmtune.inspect.row import see_rows
from glmtune.inspect.survey import survey_rows
from glmtune.model.load import load_tokenizer
from glmtune.recipe.reading import build_recipe
from glmtune.template.base import IGNORE, Example
from glmtune.template.pieces import Piece, pieces_of
from glmtune.template.select import template_for

ROWS = [
    {"instruction": "写一首诗", "input": "", "output": "春天来了。"},
    {"instruction": "翻译", "input": "我喜欢读书", "output": "I like\nreading 鑫😀."},
    {"instruction": "北京的历史", "input": "", "output": "三千多年。"},
]


def run_inspect(*arguments: str | Path | int) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_row_is_shown_with_what_is_learned_in_brackets(rows: Path, tiny_model_dir: Path) -> None:
    shown = run_inspect(rows, "--model", tiny_model_dir, "--row", 2)

    head, tokens, input_text, labels = shown.split("\n\n", maxsplit=3)
    assert f"{rows}:2  (format alpaca; template family chatglm3, layout official)" in head
    assert "".join(tokens.split("│")).replace("⏎\n", "\n") == (
        "[gMASK]sop<|user|> \n 翻译\n我喜欢读书<|assistant|>⟦ \n I like\nreading 鑫😀.</s>⟧"
    )
    assert input_text == (
        "input:\n[gMASK]sop<|user|> \n 翻译\n我喜欢读书<|assistant|> \n I like\nreading 鑫😀."
    )
    assert labels.strip() == "labels:\n\n I like\nreading 鑫😀."
    template = template_for(load_tokenizer(tiny_model_dir))
    num_learned = sum(label != IGNORE for label in template.encode(_second()).labels)
    assert f" tokens, {num_learned} learned" in head


def _second() -> Any:
    from glmtune.conversation import Conversation, Message

    return Conversation(
        (Message("user", "翻译\n我喜欢读书"), Message("assistant", "I like\nreading 鑫😀."))
    )


@pytest.mark.parametrize("layout", ["official", "tutorial", "plain"])
def test_what_is_shown_is_what_training_encodes(
    rows: Path, tiny_model_dir: Path, tmp_path: Path, layout: str
) -> None:
    recipe = build_recipe(
        {
            "model": {"name_or_path": str(tiny_model_dir)},
            "data": {
                "train": str(rows),
                "layout": layout,
                "max_length": 40,
                "overlong": "truncate_prompt",
            },
            "output": {"dir": "out"},
        }
    )
    template = template_for(load_tokenizer(tiny_model_dir), recipe.data.layout)
    options = EncodeOptions(max_length=40, overlong="truncate_prompt")
    encoded = encode_data(rows, template, options, cache_dir=tmp_path / "cache")

    seen = list(see_rows(recipe, first=1, count=3))

    assert [row.example for row in seen] == list(encoded)
    assert [row.place for row in seen] == [encoded.origin(index) for index in range(3)]


def test_a_character_of_several_tokens_is_one_piece(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    ids = tokenizer.encode("a鑫😀b", add_special_tokens=False)
    example = Example([*ids, 2], [*ids[:-1], IGNORE, 2])

    pieces = list(pieces_of(example, tokenizer))

    texts = [piece.text for piece in pieces]
    assert [len(piece.ids) for piece in pieces if piece.text in ("鑫", "😀")] == [3, 4]
    assert "".join(texts) == " a鑫😀b</s>"
    assert [token_id for piece in pieces for token_id in piece.ids] == example.input_ids
    assert pieces[-1] == Piece((2,), "</s>", is_learned=True, is_special=True)
    assert pieces[-2] == Piece((ids[-1],), "b", is_learned=False, is_special=False)


def test_text_that_spells_a_special_token_is_not_shown_as_one(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    ids = [486, *tokenizer.encode("<|user|>", add_special_tokens=False)]

    pieces = list(pieces_of(Example(ids, [IGNORE] * len(ids)), tokenizer))

    assert [piece.is_special for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(piece.text for piece in pieces) == "<|user|> <|user|>"


def test_a_cut_inside_a_character_shows_that_it_is_unfinished(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    ids = tokenizer.encode("鑫", add_special_tokens=False)[:-1]

    *_, last = pieces_of(Example(ids, ids), tokenizer)

    assert set(last.text) == {"\N{REPLACEMENT CHARACTER}"}


def test_ids_are_shown_on_request(rows: Path, tiny_model_dir: Path) -> None:
    shown = run_inspect(rows, "--model", tiny_model_dir, "--row", 2, "--ids")

    lines = [line.split() for line in shown.splitlines()]
    assert ["0", "481", "[gMASK]"] in lines
    bytes_of_xin = [str(byte + 3) for byte in "鑫".encode()]
    [xin] = [line for line in lines if line[1:4] == bytes_of_xin]
    assert xin[4:] == ["⟦鑫⟧"]


def test_a_terminal_gets_colours_instead_of_brackets(rows: Path, tiny_model_dir: Path) -> None:
    recipe = build_recipe(
        {
            "model": {"name_or_path": str(tiny_model_dir)},
            "data": {"train": str(rows)},
            "output": {"dir": "out"},
        }
    )
    [seen] = see_rows(recipe)
    terminal: dict[str, Any] = {
        "force_terminal": True,
        "color_system": "standard",
        "highlight": False,
    }
    colourful, plain = Console(**terminal, no_color=False), Console(**terminal, no_color=True)

    with colourful.capture() as captured:
        print_row(seen, colourful, with_ids=False)
    assert re.search(r"\x1b\[1;32m ?春", captured.get())
    assert "⟦" not in captured.get()
    with plain.capture() as captured:
        print_row(seen, plain, with_ids=False)
    assert "⟦" in captured.get()
    assert "32m" not in captured.get()


def test_terminal_escape_sequences_in_a_row_are_not_printed() -> None:
    piece = Piece((1,), "\x1b[31m\ta\u200bb\u3000", is_learned=False, is_special=False)

    assert flowing_text((piece,), has_color=False).plain == r"\x1b[31m⇥a\u200bb" + "\u3000"
    assert printable("a\nb\r\x07", keep_lines=True) == "a\nb␍\\x07"


def test_several_rows_are_shown_one_after_the_other(rows: Path, tiny_model_dir: Path) -> None:
    shown = run_inspect(rows, "--model", tiny_model_dir, "--row", 2, "-n", 5)

    assert f"{rows}:1 " not in shown
    assert f"{rows}:2 " in shown
    assert f"{rows}:3 " in shown


@pytest.mark.parametrize(
    ("overlong", "note", "ends_with"),
    [
        ("drop", "tokens are more than data.max_length 20", "</s>⟧"),
        ("truncate_prompt", "prompt shortened: ", "</s>⟧"),
        ("tutorial", "cut off after token 20 of ", "⟧"),
    ],
)
def test_what_is_done_with_a_long_row_is_shown(
    tmp_path: Path, tiny_model_dir: Path, overlong: str, note: str, ends_with: str
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "诗", "response": "春天来了。" * 2}), encoding="utf-8")
    if overlong == "truncate_prompt":
        path.write_text(json.dumps({"prompt": "诗" * 20, "response": "好"}), encoding="utf-8")

    shown = run_inspect(
        *(path, "--model", tiny_model_dir, "--max-length", 20, "--overlong", overlong)
    )

    assert note in shown
    tokens = shown.split("\n\n")[1]
    assert tokens.endswith(ends_with)
    assert tokens.endswith("</s>⟧") == (overlong != "tutorial")


def test_a_recipe_brings_its_data_model_and_layout(
    rows: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {tiny_model_dir}}}\n"
        f"data: {{train: {rows}, layout: tutorial}}\n"
        "output: {dir: out}\n",
        encoding="utf-8",
    )

    shown = run_inspect(recipe, "--row", 3)
    assert f"{rows}:3  (format alpaca; template family chatglm3, layout tutorial)" in shown
    assert "layout official" in run_inspect(recipe, "--layout", "official")
    assert "none of its first 9 of " in run_inspect(recipe, "max_length=9", "overlong=tutorial")


def test_columns_and_roles_are_given_as_in_a_recipe(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = tmp_path / "odd.jsonl"
    chat = [{"who": 1, "role": "bot_in", "content": "你好"}, {"role": "bot", "content": "好的"}]
    path.write_text(json.dumps({"talk": chat}, ensure_ascii=False), encoding="utf-8")

    shown = run_inspect(
        *(path, "--model", tiny_model_dir, "--format", "openai", "--columns", "messages=talk"),
        *("--roles", "bot_in=user", "--roles", "bot=assistant"),
    )

    assert "format openai" in shown
    assert "<|user|> \n 你好<|assistant|> \n 好的" in shown


# ---- what cannot be shown ----------------------------------------------------------------


def test_a_row_that_is_not_there_is_refused(rows: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match=r"there is no row 4, only 3 rows"):
        run_inspect(rows, "--model", tiny_model_dir, "--row", 4)


def test_a_bad_row_counts_and_is_explained(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = tmp_path / "bad.jsonl"
    good = json.dumps(ROWS[0], ensure_ascii=False)
    path.write_text(f'{good}\n{{"instruction": \n{good}\n', encoding="utf-8")

    assert f"{path}:3 " in run_inspect(path, "--model", tiny_model_dir, "--row", 3)
    with pytest.raises(DataError, match=rf"{path}:2: "):
        run_inspect(path, "--model", tiny_model_dir, "--row", 2)


def test_a_row_without_an_answer_is_explained(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('{"instruction": "a", "output": " "}', encoding="utf-8")

    with pytest.raises(DataError, match=rf"{path}:1: field 'output': the answer is empty"):
        run_inspect(path, "--model", tiny_model_dir)


def test_missing_things_are_named(rows: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--model is missing"):
        run_inspect(rows)
    with pytest.raises(CheckpointError, match="no such folder"):
        run_inspect(rows, "--model", tmp_path / "no" / "such")
    with pytest.raises(DataError, match=r"no\.json"):
        run_inspect(tmp_path / "no.json", "--model", tiny_model_dir)
    with pytest.raises(RecipeError, match=r"--columns a: expected two names"):
        run_inspect(rows, "--model", tiny_model_dir, "--columns", "a")
    with pytest.raises(RecipeError, match=r"there is no such recipe"):
        run_inspect(tmp_path / "no.yaml")


# ---- texts, as pre-training sees them --------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("春天来了，花儿开了。小鸟在树上唱歌。\n\n北京的历史。\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_an_objective_is_shown_by_its_tokens_positions_and_who_sees_whom(
    text: Path, tiny_model_dir: Path, objective: str
) -> None:
    shown = run_inspect(text, "--model", tiny_model_dir, "--objective", objective)

    head, _, *lines = shown.strip().splitlines()
    part_a = [line for line in lines if line[4] == "A"]
    part_b = [line for line in lines if line[4] == "B"]
    size = len(lines)
    assert head.startswith(f"{text}:1  {size} tokens: {len(part_a)} in part A")
    pictures = [line.split()[-1] for line in lines]
    for picture in pictures[: len(part_a)]:
        assert picture == "█" * len(part_a) + "·" * len(part_b)
    for index, picture in enumerate(pictures[len(part_a) :], start=1):
        assert picture == "█" * len(part_a) + "▒" * index + "·" * (len(part_b) - index)
    assert "sop" in part_b[0]
    # The last three columns are position, block and picture.
    blocks = [int(line.split()[-2]) for line in part_b]
    positions = [int(line.split()[-3]) for line in part_b]
    if objective == "causal":  # ChatGLM3's own
        assert (len(part_a), set(blocks), positions) == (1, {0}, list(range(1, size)))
    else:
        assert blocks[0] == 1
        assert all("MASK]" in lines[position] for position in positions)
    if objective in ("causal", "causal-lm", "prefix-lm"):
        assert "</s>" in part_b[-1]
        assert head.endswith(f" {len(part_b)} learned")


def test_another_text_and_other_settings_of_an_objective(text: Path, tiny_model_dir: Path) -> None:
    given = (text, "--model", tiny_model_dir, "--objective", "sentence", "--row", 2)

    assert "[sMASK]" in run_inspect(*given)
    assert f"{text}:3 " in run_inspect(*given)
    assert "[MASK]" in run_inspect(*given, "objective.task_masks=false")
    assert "9 tokens" in run_inspect(*given[:-2], "--max-length", 7, "objective.masked_share=0.01")


def test_a_long_text_is_listed_and_not_drawn(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("春天来了，花儿开了。" * 20, encoding="utf-8")

    shown = run_inspect(path, "--model", tiny_model_dir, "--objective", "masked-lm")

    assert "█" not in shown
    assert "--max-length 64" in shown


def test_what_an_objective_cannot_show_is_refused(
    text: Path, tiny_model_dir: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    given = (text, "--objective", "token", "--model")
    with pytest.raises(DataError, match=r"there is no text 3, only 2"):
        run_inspect(*given, tiny_model_dir, "--row", 3)
    with pytest.raises(RecipeError, match="Leave it out with --objective"):
        run_inspect(*given, tiny_model_dir, "--html", tmp_path / "page.html")
    with pytest.raises(DataError, match=r"no token \[MASK\]"):
        run_inspect(*given, tiny_llama_dir)


def test_it_works_from_inside_the_folder_of_the_model(
    rows: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_dir)

    assert run_inspect(rows, "--model", ".") == run_inspect(rows, "--model", tiny_model_dir)


PAIRS = [
    {"instruction": "写一首诗", "input": "", "chosen": "春天来了。", "rejected": "不写。"},
    {"instruction": "翻译", "input": "", "chosen": "reading", "rejected": "读" * 60},
]


def test_both_answers_of_a_pair_are_shown(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in PAIRS]
    path.write_text("\n".join(lines), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    tree = {
        "model": {"name_or_path": str(tiny_model_dir)},
        "data": {"train": str(path), "max_length": 60},
        "output": {"dir": str(tmp_path / "out")},
    }
    recipe.write_text(json.dumps(tree), encoding="utf-8")

    shown = run_inspect(path, "--model", tiny_model_dir, "-n", 2, "--max-length", 60)
    learned = run_inspect(recipe, "-n", 2)
    preferred = run_inspect(recipe, "stage=dpo", "-n", 2)

    assert re.findall(r"pairs\.jsonl:(.*?)  \(format chosen_rejected", shown) == [
        *("1 (chosen)", "1 (rejected)", "2 (chosen)", "2 (rejected)")
    ]
    assert "⟦ \n 不写。</s>⟧" in shown.replace("│", "").replace("⏎\n", "\n")
    assert len(re.findall(r"note: left out: \d+ tokens are more than .*max_length 60", shown)) == 1
    assert preferred == shown
    assert "rejected)" not in learned  # which a run of this recipe never sees
    assert "不写" not in learned


def test_the_page_counts_pairs_as_the_trainer_does(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in PAIRS]
    path.write_text("\n".join(lines), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(tiny_model_dir)},
        "data": {"train": str(path), "max_length": 60},
        "output": {"dir": str(tmp_path / "out")},
    }
    template = template_for(load_tokenizer(tiny_model_dir))

    survey = survey_rows(build_recipe(tree, ["stage=dpo"]), count=2, pairs=True)

    expected = encode_pairs(path, template, EncodeOptions(max_length=60), cache_dir=tmp_path)
    keys = ("num_rows", "num_examples", "num_tokens", "num_learned_tokens", "num_overlong")
    assert [getattr(survey.report, k) for k in keys] == [getattr(expected.report, k) for k in keys]
    assert survey.report.longest == expected.report.longest
    assert [row.place.rpartition(":")[2] for row in survey.chosen] == [
        *("1 (chosen)", "1 (rejected)", "2 (chosen)", "2 (rejected)")
    ]
    assert survey.worst["Longest"][0].place.endswith("2 (rejected)")
