"""The tokenizer and the chat template of ChatGLM in a GGUF.

    ids 0..             pieces with their scores: NORMAL, BYTE, UNKNOWN, CONTROL
    after them          [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> ...: CONTROL
    up to the rows of the embedding    [PADn]: UNUSED

llama.cpp cuts control tokens out of any text of a chat, also in the middle of a word: `eop` out of
"people". So these two have brackets here, with the ids that they have always had, and the template
begins with `[gMASK]<sop>`. It has no normalizer either, so the guard of our `tokenizer.json` cannot
be taken out again: text that spells a token has a space put into it instead.

Source: https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp.
"""

from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError
from glmtune.model.chatglm.chat_format import PREFIX_TOKENS, ChatIds
from glmtune.model.chatglm.chat_jinja import llama_cpp_template
from glmtune.recipe.choices import Layout

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Without the brackets, llama.cpp would find them inside words.
RENAMED = {"sop": "<sop>", "eop": "<eop>"}
START = "".join(RENAMED.get(token, token) for token in PREFIX_TOKENS)
_CONTROL_SCORE = -1e9  # never merged from pieces before real ones


def check_has_pieces(tokenizer: Any) -> None:
    """Refuse the tokenizer of another family.

    Raises:
        CheckpointError: it is not ChatGLM's.
    """
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

    if not isinstance(tokenizer, ChatGLMTokenizer):
        raise CheckpointError(
            f"the tokenizer is a {type(tokenizer).__name__}, and a GGUF is written with ChatGLM's "
            "pieces. If this is a ChatGLM, put the tokenizer.model of the model into its folder; "
            "GLM-4 and other families are converted by llama.cpp's own convert_hf_to_gguf.py, after"
            " `glmtune merge`."
        )


def add_vocabulary(writer: "GGUFWriter", tokenizer: Any, vocab: int, layout: Layout) -> None:
    """Add the keys of tokenizer and chat template.

    Args:
        writer: of the GGUF.
        tokenizer: ChatGLM's.
        vocab: rows of the embedding.
        layout: of the prompts.

    Raises:
        CheckpointError: the tokenizer has more ids than the embedding, or is another family's.
    """
    from gguf import TokenType

    check_has_pieces(tokenizer)
    if len(tokenizer) > vocab:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} ids, and the embedding {vocab} rows: they belong "
            "to different models. Use the tokenizer of the checkpoint."
        )
    tokens, scores, types = _tokens(tokenizer, vocab)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    ids = ChatIds.of(tokenizer)
    unk_id = tokenizer.sp_model.unk_id()
    writer.add_eos_token_id(ids.end[0])
    writer.add_unk_token_id(unk_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if layout in ("official", "tutorial"):  # the next turn ends an answer, too
        writer.add_eot_token_id(ids.roles["user"][0])
        writer.add_eom_token_id(ids.roles["observation"][0])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    cut_out = (TokenType.CONTROL, TokenType.UNKNOWN)
    named = [token for token, kind in zip(tokens, types, strict=True) if kind in cut_out]
    writer.add_chat_template(llama_cpp_template(layout, START, named))


def _tokens(tokenizer: Any, vocab: int) -> tuple[list[str], list[float], list[int]]:
    """Return name, score and type of every id."""
    from gguf import TokenType

    model = tokenizer.sp_model
    tokens, scores, types = [], [], []
    for index in range(vocab):
        if index < model.get_piece_size():
            token, score = model.id_to_piece(index), model.get_score(index)
            kind = _kind(model, index)
        elif (added := tokenizer.added_tokens_decoder.get(index)) is not None:
            token, score = RENAMED.get(added.content, added.content), _CONTROL_SCORE
            kind = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        else:
            token, score, kind = f"[PAD{index}]", _CONTROL_SCORE, TokenType.UNUSED
        tokens.append(token)
        scores.append(score)
        types.append(int(kind))
    if len(set(tokens)) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise CheckpointError(
            f"two ids of the tokenizer are named {twice!r}, and a GGUF has one id per name. "
            "Use a tokenizer whose pieces do not spell a special token."
        )
    return tokens, scores, types


def _kind(model: Any, index: int) -> Any:
    from gguf import TokenType

    if model.is_unknown(index):
        return TokenType.UNKNOWN
    if model.is_control(index):
        return TokenType.CONTROL
    if model.is_unused(index):
        return TokenType.UNUSED
    return TokenType.BYTE if model.is_byte(index) else TokenType.NORMAL
