"""A row on a page: what is learned, what is not, and what was cut."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from glmtune.conversation import Conversation, Message
from glmtune.inspect.shown_row import MAX_PIECES, ShownPiece, ShownRow, show_row
from glmtune.model.load import load_tokenizer
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for

TALK = Conversation(
    (
        Message("user", "写一首关于春天的诗。"),
        Message("assistant", "春天来了。"),
        Message("user", "请翻译：我喜欢读书。"),
        Message("assistant", "I like 鑫😀."),
    )
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(str(tiny_model_dir))


def texts(pieces: Sequence[ShownPiece], state: str) -> str:
    return "".join(piece.text for piece in pieces if piece.state == state)


def kept_ids(row: ShownRow) -> list[int]:
    return [i for piece in row.pieces if piece.state != "cut" for i in piece.ids]


def test_a_complete_row_has_learned_and_unlearned_pieces_and_no_cut_ones(tokenizer: Any) -> None:
    example = template_for(tokenizer).encode(TALK)

    row = show_row(example, example, tokenizer, place="rows.json:2")

    assert texts(row.pieces, "learned") == " \n 春天来了。<|user|> \n I like 鑫😀.</s>"
    assert texts(row.pieces, "cut") == ""
    assert kept_ids(row) == example.input_ids
    assert row.num_tokens == len(example.input_ids)
    assert row.num_learned == sum(label != IGNORE for label in example.labels)
    assert all(a.position + len(a.ids) == b.position for a, b in pairwise(row.pieces))


def test_bytes_of_a_rare_character_are_one_readable_piece_with_all_its_ids(tokenizer: Any) -> None:
    example = template_for(tokenizer).encode(TALK)

    row = show_row(example, example, tokenizer, place="rows.json:2")

    [rare] = [piece for piece in row.pieces if piece.text == "😀"]
    assert len(rare.ids) == 4


def test_a_shortened_prompt_shows_the_turns_that_training_does_not_see(tokenizer: Any) -> None:
    template = template_for(tokenizer)
    whole = template.encode(TALK)
    fitted = template.shorten_prompt(TALK, len(whole.input_ids) - 3)
    assert fitted is not None

    row = show_row(whole, fitted, tokenizer, place="rows.json:2")

    cut = texts(row.pieces, "cut")
    assert "写一首关于春天的诗。" in cut
    assert "春天来了。" in cut
    assert "请翻译" not in cut
    assert kept_ids(row) == fitted.input_ids
    assert row.num_cut == len(whole.input_ids) - len(fitted.input_ids)
    assert texts(row.pieces, "learned") == " \n I like 鑫😀.</s>"


def test_a_row_that_is_cut_off_shows_its_end_as_cut(tokenizer: Any) -> None:
    whole = template_for(tokenizer).encode(TALK)
    fitted = Example(whole.input_ids[:-6], whole.labels[:-6])

    row = show_row(whole, fitted, tokenizer, place="rows.json:2", fate="cut off")

    assert row.pieces[-1].text == "</s>"
    assert row.pieces[-1].state == "cut"
    assert (row.num_tokens, row.num_cut) == (len(fitted.input_ids), 6)


def test_a_row_that_is_left_out_has_no_tokens_that_count(tokenizer: Any) -> None:
    whole = template_for(tokenizer).encode(TALK)

    row = show_row(whole, None, tokenizer, place="rows.json:2")

    assert {piece.state for piece in row.pieces} == {"cut"}
    assert (row.num_tokens, row.num_learned, row.num_cut) == (0, 0, len(whole.input_ids))


def test_of_a_very_long_row_only_the_beginning_is_shown_but_all_tokens_are_counted(
    tokenizer: Any,
) -> None:
    [token_id] = tokenizer.encode_texts(["。"])[0][-1:]
    whole = Example([token_id] * (MAX_PIECES + 7), [IGNORE] * (MAX_PIECES + 7))

    row = show_row(whole, whole, tokenizer, place="book.json:1")

    assert (len(row.pieces), row.num_hidden, row.num_tokens) == (MAX_PIECES, 7, MAX_PIECES + 7)


def test_markup_in_a_piece_is_text_and_direction_marks_are_spelled_out() -> None:
    piece = ShownPiece(0, (1,), "<b>\u202e\t&\n", "learned", is_special=False)

    assert str(piece.html) == "&lt;b&gt;\\u202e⇥&amp;⏎"
    assert piece.ends_line
