"""How fast text becomes ids: ChatGLMTokenizer beside SentencePiece alone, and the template.

    python -m benchmarks.tokenizer [alpaca.json]

27,000 different texts are made of the rows of an alpaca file, each followed by its number
(without a file: of a few sentences in random order). Every method encodes all of them in each
round, one method after the other, so that a busy machine slows all alike; the medians are printed.
"""

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, normalizers

from glmtune.conversation import Conversation, Message
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.chatglm.train_tokenizer import train_tokenizer
from glmtune.template.chatglm import ChatGLMTemplate

NUM_ROWS = 27_000
SHARED = Path(__file__).resolve().parents[2] / "shared"
SENTENCES = [
    "今天的天气很好，我们去公园散步吧。",
    "请用一句话介绍北京。",
    "I like books. ",
    "12 + 30 = 42\n",
]


def read_rows(file: Path) -> list[tuple[str, str]]:
    """Give prompts and answers, `NUM_ROWS` of them and no two alike."""
    if file.is_file():
        rows = json.loads(file.read_text("utf-8"))
        pairs = [(f"{row['instruction']}\n{row['input']}".strip(), row["output"]) for row in rows]
    else:
        print(f"{file} is not there; the texts are made up.")
        words = random.Random(0)
        pairs = [("".join(words.choices(SENTENCES, k=4)),) * 2 for _ in range(1000)]
    return [
        (f"{prompt}{number}", f"{answer}{number}")
        for number, (prompt, answer) in enumerate(pairs * (NUM_ROWS // len(pairs) + 1))
    ][:NUM_ROWS]


def load_tokenizer(texts: list[str], folder: Path) -> ChatGLMTokenizer:
    """Give ChatGLM3's tokenizer where it is, else one that is trained on the texts."""
    real = SHARED / "golden" / "chatglm3-tokenizer"
    if real.is_dir():
        return ChatGLMTokenizer.from_pretrained(real)
    return train_tokenizer(texts[:2000], 1000, folder)


def build_fast(pieces: SentencePieceProcessor) -> Tokenizer:
    """Give the same tokenizer for the `tokenizers` library: a BPE whose merges are all splits."""
    ids = range(pieces.get_piece_size())
    vocab = {pieces.id_to_piece(i): i for i in ids}
    scores = {pieces.id_to_piece(i): pieces.get_score(i) for i in ids}
    merges = [
        (score, len(left), left, right)
        for piece, score in scores.items()
        if not (pieces.is_byte(vocab[piece]) or pieces.is_control(vocab[piece]))
        for left, right in ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        if left in vocab and right in vocab
    ]
    merges.sort(key=lambda merge: merge[:2], reverse=True)
    pairs = [(left, right) for _, _, left, right in merges]
    fast = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return fast


def measure(ways: dict[str, Callable[[], object]], num_rounds: int) -> dict[str, float]:
    """Give the median time of each way, in seconds; the rounds go through all ways in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, way in ways.items():
            gc.collect()
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SHARED / "data/alpaca_zh_1000.json")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = read_rows(options.file)
    texts = [f"{prompt}\n{answer}" for prompt, answer in rows]
    conversations = [
        Conversation((Message("user", prompt), Message("assistant", answer)))
        for prompt, answer in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(texts, Path(folder))
        plain = SentencePieceProcessor()
        plain.load_from_serialized_proto(tokenizer.sp_model.serialized_model_proto())
        template = ChatGLMTemplate(tokenizer)
        fast = build_fast(plain)
        expected = plain.encode(texts[:500])
        assert tokenizer(texts[:500], add_special_tokens=False)["input_ids"] == expected
        assert [row.ids for row in fast.encode_batch(texts[:500])] == expected
        baseline = "sentencepiece, one by one"
        ways: dict[str, Callable[[], object]] = {
            baseline: lambda: [plain.encode(text) for text in texts],
            "sentencepiece, a list, 1 thread": lambda: plain.encode(texts, num_threads=1),
            "sentencepiece, a list, 2 threads": lambda: plain.encode(texts, num_threads=2),
            "tokenizers' BPE, a list, all cores": lambda: fast.encode_batch_fast(texts),
            "tokenizer.encode_texts(list)": lambda: tokenizer.encode_texts(texts),
            "tokenizer(list)": lambda: tokenizer(texts),
            "tokenizer(text), one by one": lambda: [tokenizer(text) for text in texts],
            "template.encode_batch, by 1000": lambda: [
                template.encode_batch(conversations[start : start + 1000])
                for start in range(0, NUM_ROWS, 1000)
            ],
        }
        times = measure(ways, options.rounds)
    num_tokens = sum(len(ids) for ids in plain.encode(texts))
    print(
        f"{NUM_ROWS:,} texts, {num_tokens / NUM_ROWS:.0f} tokens each; median of {options.rounds}"
    )
    for name, seconds in times.items():
        print(
            f"{name:34} {seconds:6.2f} s {NUM_ROWS / seconds:9,.0f} rows/s "
            f"{times[baseline] / seconds:5.2f} x"
        )


if __name__ == "__main__":
    main()
