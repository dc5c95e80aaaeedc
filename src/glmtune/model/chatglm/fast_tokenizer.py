"""ChatGLM's tokenizer -> the same ids from the `tokenizers` library, as `tokenizer.json` holds it.

    normalizer       Take out guards | Prepend ▁ | Replace " " by ▁
    model            BPE over a complete stretch of text, with bytes for characters without a piece
    added tokens     [gMASK]  sop  <|system|> ... : text is cut at these before it is normalized
    post-processor   [gMASK] sop in front

A stretch between two added tokens gets a ▁ of its own, as each string of the chat format does. Two
rules are easy to get wrong. SentencePiece keeps one score per piece, and the library one rank per
pair: so the pairs are all splits of each piece, in the order of the pieces' scores. And an added
token is cut out of any text that spells it, so a chat template breaks the spelling with a guard,
which the normalizer takes out again (`glmtune.model.chatglm.chat_jinja`).

Source: https://github.com/google/sentencepiece, bpe_model.cc; spec section 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from glmtune.conversation import ROLES
from glmtune.errors import CheckpointError
from glmtune.model.chatglm.chat_format import PREFIX_TOKENS

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer

    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space
# Unicode reserves these code points for use within a program, so that no text has them.
ESCAPE = "\ufdd0"
ESCAPED = "\ufdd0\ufde7"  # for an ESCAPE that is part of the text
GUARD = "\ufdd0\ufde9"  # breaks the spelling of a token
# The other special tokens are known by id and name but never cut out of text: "people" has "eop".
CUT_OUT = (*PREFIX_TOKENS, *(f"<|{role}|>" for role in ROLES))

# Texts whose ids differ under other settings of SentencePiece.
_TEXTS = (
    *("", "a", " a", "a ", "a  b", "  ", "\n", "\n\n a", "\t", "ＡＢ", "e\u0301", "龘😀\x00"),
    *("12 apples\n你好，世界。", "```python\n  print('x')\n```", "aaaa ababab      b"),
)


def cut_out_tokens(tokenizer: ChatGLMTokenizer) -> dict[int, AddedToken]:
    """Return the tokens that stock tokenizers cut out of text, by id.

    These are the tokens of prompts, the named tokens (`</s>`, `<unk>`), and what `add_tokens`
    added. A token that is a plain word is cut out only where it stands alone.
    """
    from tokenizers import AddedToken

    vocabulary = tokenizer.get_vocab()
    named = [str(token) for token in tokenizer.special_tokens_map.values()]
    ids = {vocabulary[token]: token for token in (*CUT_OUT, *named)}
    tokens = {
        index: AddedToken(token, special=True, normalized=False, single_word=token.isalnum())
        for index, token in ids.items()
    }
    added = tokenizer.added_tokens_decoder.items()
    return dict(sorted((tokens | {i: t for i, t in added if i >= tokenizer.vocab_size}).items()))


def fast_tokenizer_json(tokenizer: ChatGLMTokenizer) -> str:
    """Return the text of `tokenizer.json`.

    It takes 2 seconds for ChatGLM3's pieces, and is kept for the next call in this process.

    Raises:
        CheckpointError: the pieces were not trained with ChatGLM's settings, so that the library
            cannot give their ids.
    """
    tokens = cut_out_tokens(tokenizer)
    flags = tuple(
        (index, t.content, t.special, t.normalized, t.single_word) for index, t in tokens.items()
    )
    vocabulary = tuple(sorted(tokenizer.added_tokens_encoder.items()))
    return _build(tokenizer.sp_model.serialized_model_proto(), vocabulary, flags)


@lru_cache(maxsize=2)
def _build(
    pieces: bytes,
    vocabulary: tuple[tuple[str, int], ...],
    flags: tuple[tuple[int, str, bool, bool, bool], ...],
) -> str:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model = SentencePieceProcessor(model_proto=pieces)
    num_pieces = model.get_piece_size()
    ids = {model.id_to_piece(index): index for index in range(num_pieces)}
    if taken := [token for token, _ in vocabulary if token in ids]:
        raise CheckpointError(
            f"{taken[0]!r} is both a piece of tokenizer.model and a special token, and "
            "tokenizer.json has one id per name."
        )
    bpe = models.BPE(
        vocab=ids | dict(vocabulary),
        merges=list(_merges(model)),
        byte_fallback=True,
        unk_token=model.id_to_piece(model.unk_id()),
        fuse_unk=False,
    )
    fast = Tokenizer(bpe)
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(GUARD, ""),
            normalizers.Replace(ESCAPED, ESCAPE),
            normalizers.Prepend(SPACE),
            normalizers.Replace(" ", SPACE),
        ]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    for _, content, special, normalized, single_word in flags:
        token = AddedToken(content, special=special, normalized=normalized, single_word=single_word)
        (fast.add_special_tokens if special else fast.add_tokens)([token])
    end = model.id_to_piece(model.eos_id())
    special_ids = dict(vocabulary) | {end: model.eos_id()}
    start = " ".join(PREFIX_TOKENS)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A $B {end}",
        special_tokens=[(token, special_ids[token]) for token in (*PREFIX_TOKENS, end)],
    )
    _check_equal(fast, model)
    return str(fast.to_str())


def _merges(model: SentencePieceProcessor) -> Iterator[tuple[str, str]]:
    """Yield every pair of pieces that joins to a piece, the pairs that join first in front."""
    pieces = [
        index
        for index in range(model.get_piece_size())
        if not (model.is_control(index) or model.is_unknown(index) or model.is_byte(index))
    ]
    known = {model.id_to_piece(index) for index in pieces}
    for index in sorted(pieces, key=model.get_score, reverse=True):
        piece = model.id_to_piece(index)
        for at in range(1, len(piece)):
            first, second = piece[:at], piece[at:]
            if first in known and second in known:
                yield first, second


def _check_equal(fast: Tokenizer, model: Any) -> None:
    """Refuse pieces of other settings: unigram, normalized text, newlines inside a piece.

    Raises:
        CheckpointError: names a text with other ids.
    """
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    texts = [*_TEXTS, *(piece for piece in pieces if "\n" in piece)]
    texts += [piece.replace(SPACE, " ") for piece in pieces[:: max(1, len(pieces) // 200)]]
    cut_out = [token.content for token in fast.get_added_tokens_decoder().values()]
    newline = model.encode("\n")
    for text in texts:
        if any(token in text for token in cut_out):
            continue
        ids = model.encode(text)
        alone = fast.encode(text, add_special_tokens=False).ids
        in_chat = fast.encode(f"\n {text}" if text else "\n", add_special_tokens=False).ids
        if alone != ids or in_chat != [*newline, *ids]:
            raise CheckpointError(
                f"tokenizer.model gives {text!r} other ids than the tokenizers library, since it "
                "was trained with other settings than ChatGLM's."
            )
