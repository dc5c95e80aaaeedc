"""Train a small tokenizer with the settings of ChatGLM3's, and write its folder.

The settings were read from ChatGLM3's `tokenizer.model`: no normalization, one leading space per
string, no whitespace removed, digits split, and every character that has no piece as its UTF-8
bytes. Newlines and tabs are always bytes.

    ids     0 <unk>   1 <s>   2 </s>   3..258 bytes   259.. pieces   then the nine special tokens

The same texts give the same file, on any machine.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

NUM_RESERVED = 3 + 256  # <unk>, <s>, </s> and the bytes
LEAST_PIECES = NUM_RESERVED + 8


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> ChatGLMTokenizer:
    """Train pieces on texts and write a tokenizer folder that `from_pretrained` reads.

    Args:
        texts: the training corpus; the order does not matter.
        vocab_size: pieces of the SentencePiece model. The tokenizer has nine more ids.
        folder: made if it does not exist; `tokenizer.model` and its configuration go there.

    Raises:
        ValueError: the size is too small for the bytes, or the texts have too few pieces.
    """
    if vocab_size < LEAST_PIECES:
        raise ValueError(f"got vocab_size={vocab_size}, expected at least {LEAST_PIECES}.")
    lines = _keep_frequent_characters(texts, (vocab_size - NUM_RESERVED) // 2)
    if not lines:
        raise ValueError("there is no text to learn pieces from.")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=1 << 24,
            num_threads=1,
            minloglevel=3,  # its log is of no use to users
        )
    except RuntimeError as error:
        raise ValueError(
            f"{len(lines)} lines of text are too few for {vocab_size} pieces: {error}. "
            "Request fewer pieces, or give more text."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file = folder / ChatGLMTokenizer.vocab_files_names["vocab_file"]
    vocab_file.write_bytes(model.getvalue())
    tokenizer = ChatGLMTokenizer(vocab_file)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _keep_frequent_characters(texts: Iterable[str], num_characters: int) -> list[str]:
    """Split texts at newlines, tabs and rare characters, for which no piece is learned.

    At most half of the pieces are single characters, so that there is room for longer ones.
    SentencePiece has an option for this, `character_coverage`, but not below 98 %.
    """
    lines = sorted(line for text in texts for line in re.split(r"[\t\r\n]+", text) if line)
    counts = Counter(char for line in lines for char in line)
    frequent = sorted(counts, key=lambda char: (-counts[char], char))[:num_characters]
    if len(frequent) == len(counts):
        return lines
    stretch = re.compile(f"[{re.escape(''.join(frequent))}]+")
    return [part for line in lines for part in stretch.findall(line)]
