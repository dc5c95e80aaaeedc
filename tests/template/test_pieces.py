"""Token ids are shown as runs that decode to complete characters."""

from glmtune.conversation import Conversation, Message
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.base import IGNORE, Example
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.pieces import pieces_of, text_of


def test_the_pieces_of_an_example_are_its_ids_and_its_text(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    conversation = Conversation((Message("user", "你好 😀"), Message("assistant", "好的")))
    example = ChatGLMTemplate(tiny_tokenizer).encode(conversation)

    pieces = list(pieces_of(example, tiny_tokenizer))

    assert [token_id for piece in pieces for token_id in piece.ids] == example.input_ids
    text = "".join(piece.text for piece in pieces)
    assert text == "[gMASK]sop<|user|> \n 你好 😀<|assistant|> \n 好的</s>"
    special = [piece.text for piece in pieces if piece.is_special]
    assert special == ["[gMASK]", "sop", "<|user|>", "<|assistant|>", "</s>"]
    learned = "".join(piece.text for piece in pieces if piece.is_learned)
    assert learned == " \n 好的</s>"


def test_the_bytes_of_a_character_are_one_piece(tiny_tokenizer: ChatGLMTokenizer) -> None:
    ids = tiny_tokenizer.encode("😀", add_special_tokens=False)
    assert len(ids) > 3  # its bytes, or this would prove nothing

    pieces = list(pieces_of(Example(ids, ids), tiny_tokenizer))

    assert pieces[-1].text.strip() == "😀"
    assert len(pieces[-1].ids) >= 4


def test_labels_that_are_not_learned_have_no_text(tiny_tokenizer: ChatGLMTokenizer) -> None:
    ids = tiny_tokenizer.encode("好的", add_special_tokens=False)

    assert text_of([IGNORE, *ids, IGNORE], tiny_tokenizer) == "好的"
