"""The demo's rows, its checkpoint, and the folder it owns."""

import json
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from glmtune.chat import open_session
from glmtune.conversation import Conversation, Message
from glmtune.demo.facts import HELD_OUT, TRAIN, make_rows, to_json
from glmtune.demo.folder import prepare
from glmtune.demo.score import MAX_NEW_TOKENS, Question, answer, count_right
from glmtune.errors import OutputError
from glmtune.generate import Sampling
from glmtune.load import load_model, load_tokenizer


def rows(path: Path) -> list[dict[str, str]]:
    loaded: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def asked(row: dict[str, str]) -> tuple[str, str]:
    return row["instruction"], row["input"]


def test_the_rows_are_alpaca_rows_with_answers() -> None:
    for path in (TRAIN, HELD_OUT):
        for row in rows(path):
            assert set(row) == {"instruction", "input", "output"}
            assert row["instruction"]
            assert row["output"]


def test_the_rows_are_what_the_facts_and_wordings_make() -> None:
    train, held_out = make_rows()

    assert TRAIN.read_text(encoding="utf-8") == to_json(train)
    assert HELD_OUT.read_text(encoding="utf-8") == to_json(held_out)


def test_no_held_out_question_is_learned() -> None:
    learned = {asked(row) for row in rows(TRAIN)}

    assert not learned & {asked(row) for row in rows(HELD_OUT)}


def test_every_held_out_answer_is_a_fact_that_is_learned() -> None:
    learned = {row["output"] for row in rows(TRAIN)}

    assert {row["output"] for row in rows(HELD_OUT)} <= learned


def test_no_question_is_asked_twice() -> None:
    counts = Counter(asked(row) for path in (TRAIN, HELD_OUT) for row in rows(path))

    assert [question for question, count in counts.items() if count > 1] == []


def test_the_checkpoint_has_the_originals_layout_and_is_the_same_every_time(tmp_path: Path) -> None:
    one, other = (prepare(tmp_path / name).base for name in ("a", "b"))

    assert load_model(one).config.model_type == "chatglm"
    assert load_tokenizer(one).encode("你好")
    config = json.loads((one / "config.json").read_text(encoding="utf-8"))
    assert config.keys() >= {"num_layers", "padded_vocab_size", "ffn_hidden_size", "kv_channels"}
    assert not config.keys() & {"num_hidden_layers", "vocab_size", "intermediate_size", "head_dim"}
    assert (one / "tokenizer.model").is_file()
    with safe_open(one / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "transformer.embedding.word_embeddings.weight" in names
    assert "transformer.rotary_pos_emb.inv_freq" in names
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    assert weights[0] == weights[1]


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(OutputError, match=r"holds mine\.txt and no demo\.json"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_demo_replaces_the_first_and_keeps_what_is_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    prepare(folder)
    (folder / "notes.txt").write_text("mine")

    prepare(folder)

    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_of_the_demo_that_was_changed_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    train = prepare(folder).train
    train.write_text("[]")

    with pytest.raises(OutputError, match=r"train\.json changed"):
        prepare(folder)
    assert train.read_text() == "[]"


def test_a_run_of_the_users_own_in_the_demos_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    adapter = prepare(folder).adapter
    adapter.mkdir()
    (adapter / "recipe.yaml").write_text("another run")
    (adapter / "adapter_model.safetensors").write_text("its weights")

    with pytest.raises(OutputError, match=r"adapter/recipe\.yaml changed"):
        prepare(folder)
    assert (adapter / "adapter_model.safetensors").read_text() == "its weights"


def test_questions_asked_together_are_answered_as_one_by_one(taught_model_dir: Path) -> None:
    greedy = Sampling(temperature=0, max_new_tokens=MAX_NEW_TOKENS)
    session = open_session(str(taught_model_dir), sampling=greedy)
    asked_of_it = ["北京天气怎么样？", "你叫什么名字？", "再说一次你叫什么名字，好吗？"]
    alone = []
    for text in asked_of_it:
        session.reset()
        alone.append(session.reply(text).messages[-1].content)
    questions = [Question(Conversation((Message("user", text),)), "") for text in asked_of_it]
    lengths = {len(session.template.prompt_ids(question.prompt)) for question in questions}
    assert len(lengths) > 1, "with equal lengths this proves little"

    together = answer(session.model, session.template, questions)

    assert together == alone
    assert together[1] == "我是小助手。😀 鑫！"


def test_only_answers_that_are_right_to_the_letter_count() -> None:
    question = Question(Conversation((Message("user", "一加一"),)), "二。")

    assert count_right([question] * 3, ["二。", "二", "二。 "]) == 1
