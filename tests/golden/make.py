"""Make the golden vectors of this folder, or compare them with what the code gives now.

    python tests/golden/make.py            write the JSON files again
    python tests/golden/make.py --check    compare, and exit with 1 at a difference

The vectors need nothing but this repository: the tokenizer is that of `nano`, and the weights come
from integer arithmetic (`uniform`), so they do not depend on any library's random numbers.

    file             what is recorded                                       compared
    tokens.json      ids and labels by layout, prompts, fingerprints        exactly
    infilling.json   examples of each objective of GLM, in packs            exactly
    packing.json     which rows share a pack, and the pack                  exactly
    model.json       logits, losses and greedy continuations                numbers within 2e-4
    training.json    loss, gradient norm and learning rate of each step     numbers within 1e-3

Ids are always compared exactly. Greedy continuations keep a gap between the two best logits, which
is recorded, so rounding cannot change them. The largest difference seen between
ATEN_CPU_CAPABILITY=avx512, avx2 and default, each with one and with two threads, is 1e-5, one unit
of the last digit that is recorded: less than a tenth of the tolerances.

Change a vector only together with the behavior that it records, and say so in the commit.
"""

import argparse
import json
import math
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.data.packing import group_rows, pack
from glmtune.errors import TemplateError
from glmtune.kernels import packed_attention  # noqa: F401  # registers attention over packs
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_tokenizer
from glmtune.objective.mixture import mixture
from glmtune.objective.next_token import count_learned_tokens, next_token_loss
from glmtune.recipe.choices import LAYOUTS
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.sections import ObjectiveSection, TrainingSection
from glmtune.template.base import IGNORE, Example
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.tool_calls import render_tool_call
from glmtune.train.optimizer import make_optimizer, make_scheduler
from glmtune.train.run import fine_tune

FOLDER = Path(__file__).parent
TOLERANCES = {"model": 2e-4, "training": 1e-3}  # absolute, of the numbers that are not integers

TEXTS = (
    "你好，世界！", " 前面有空格", "Hello  world\n\ttab", "1234 + 56 = 1290", "😀 鑫 é ﬁ", "",
    "[gMASK]sop<|user|>\n", "```python\nprint('x')\n```",
)  # fmt: skip
WEATHER = {"name": "weather", "description": "天气", "parameters": {"city": {"type": "string"}}}
CONVERSATIONS = {
    "one exchange": (Message("user", "北京在哪里？"), Message("assistant", "在华北。")),
    "two exchanges": (
        Message("user", "你叫什么名字？"),
        Message("assistant", " 我是小助手。\n"),
        Message("user", "再说一次 😀"),
        Message("assistant", "小助手。"),
    ),
    "a tool": (
        Message("system", TOOLS_PROMPT, tools=[WEATHER]),
        Message("user", "北京天气怎么样？"),
        Message("assistant", "我查一下。", is_learned=False),
        Message("assistant", render_tool_call({"city": "北京", "days": 2}), metadata="weather"),
        Message("observation", '{"celsius": 3}'),
        Message("assistant", "3 度 [gMASK]sop</s>"),
    ),
    "an answer alone": (Message("assistant", "春天来了。"),),
}
PROMPTS = ((401, 17, 3, 250), (88, 9, 301, 44, 5, 260, 78), (12, 450))
SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "padded_vocab_size": 512,
    "seq_length": 256,
}


def uniform(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Numbers in [-1, 1) that depend on a name alone: SplitMix64 over the index.

    Source: Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195
    """
    index = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
    mixed = index * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(name.encode()) << 20)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    values: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    return values.reshape(shape)


@torch.no_grad()
def set_weights(model: nn.Module, scale: float = 0.35) -> None:
    """Give every weight its numbers, by its name; norm weights are about 1."""
    for name, weight in model.named_parameters():
        values = torch.from_numpy(uniform(name, weight.shape) * scale)
        weight.copy_(values + 1 if "layernorm" in name else values)


def tiny_model(attn_implementation: str = "packed", **shape: Any) -> Any:
    """A ChatGLM of `SHAPE` in float32."""
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**SHAPE, **shape})).float()
    set_weights(model)
    model.set_attn_implementation(attn_implementation)
    return model.eval()


def ids_of(name: str, length: int, vocab: int = 512) -> list[int]:
    """Some token ids that depend on a name alone; the first three are left out."""
    ids: list[int] = ((uniform(name, (length,)) + 1) / 2 * (vocab - 3) + 3).astype(int).tolist()
    return ids


def examples_of_ids() -> list[Example]:
    """Examples of uneven lengths, of which the first third is a prompt."""
    made = []
    for number, length in enumerate((17, 9, 30, 4, 22, 13)):
        ids = ids_of(f"row {number}", length)
        made.append(Example(ids, [IGNORE] * (length // 3) + ids[length // 3 :]))
    return made


def rounded(values: Tensor) -> Any:
    """Numbers as JSON: five decimals."""
    return [round(value, 5) for value in values.double().flatten().tolist()]


def as_lists(part: MicroBatch) -> dict[str, Any]:
    """The tensors of a micro-batch as JSON; those that it does not have are left out."""
    names = (
        "input_ids", "labels", "position_ids", "block_position_ids", "cu_seq_lens",
        "prefix_lengths",
    )  # fmt: skip
    found = {name: getattr(part, name) for name in names}
    return {name: tensor.flatten().tolist() for name, tensor in found.items() if tensor is not None}


# ---- what is recorded ---------------------------------------------------------------------------


def tokens() -> dict[str, Any]:
    """Ids of texts; ids, labels and prompts of conversations, in every layout that takes them."""
    tokenizer: Any = load_tokenizer("nano")
    layouts = {}
    for layout in LAYOUTS:
        template = ChatGLMTemplate(tokenizer, layout)
        encoded = {}
        for name, messages in CONVERSATIONS.items():
            try:
                example = template.encode(Conversation(messages))
                prompt = template.prompt_ids(Conversation(messages[:-1])) if messages[:-1] else None
            except TemplateError:
                continue  # this layout has no form for it
            learned = [int(label != IGNORE) for label in example.labels]
            assert [
                i if w else IGNORE for i, w in zip(example.input_ids, learned, strict=True)
            ] == (example.labels)
            encoded[name] = {"input_ids": example.input_ids, "is_learned": learned}
            if prompt is not None:
                encoded[name]["prompt_ids"] = prompt
        layouts[layout] = {
            "fingerprint": template.fingerprint,
            "stop_ids": list(template.stop_ids),
            "conversations": encoded,
        }
    texts = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS}
    return {"texts": texts, "layouts": layouts}


def infilling() -> dict[str, Any]:
    """Two steps of each objective over three texts, which are one pack."""
    tokenizer: Any = load_tokenizer("nano")
    texts = (
        "北京是中国的首都，有三千多年的历史。春天来了，花儿开了！小鸟在树上唱歌。",
        "What is it? A small model. It learns to fill in blanks of a text, one by one.",
        "水在一百度的时候会沸腾。",
    )
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows[0] += [tokenizer.eos_token_id, *rows[2]]  # a window of two documents
    examples = [Example(ids, ids) for ids in rows]
    made: dict[str, Any] = {}
    for level in ("token", "sentence", "document", "causal"):
        shares = dict.fromkeys(("token", "sentence", "document", "causal"), 0.0) | {level: 1.0}
        make = mixture(ObjectiveSection(**shares), tokenizer, seed=7)
        made[level] = [as_lists(make(examples, range(len(examples)), step)) for step in (0, 1)]
    return made


def packing() -> dict[str, Any]:
    """Which rows share a pack of 40 tokens, and the tensors of the first."""
    examples = examples_of_ids()
    groups = group_rows(range(len(examples)), [len(e.input_ids) for e in examples], max_tokens=40)
    first = pack([examples[row] for row in groups[0]])
    return {
        "groups": groups,
        "input_ids": first.input_ids,
        "labels": first.labels,
        "position_ids": first.position_ids,
        "lengths": first.lengths,
    }


@torch.no_grad()
def model() -> dict[str, Any]:
    """Logits at some positions, the loss of a pack, and what greedy decoding writes."""
    tiny = tiny_model()
    packed = pack_examples(examples_of_ids(), range(6))
    logits = tiny(**packed.inputs()).logits[0]
    columns = ids_of("columns", 12)
    alone = tiny(torch.tensor([PROMPTS[1]])).logits[0]
    return {
        "columns": columns,
        "packed_logits": rounded(logits[::5][:, columns]),
        "logits": rounded(alone[:, columns]),
        "mean_loss": round(
            next_token_loss(tiny, packed).item() / count_learned_tokens(packed.labels), 5
        ),
        **continuations(tiny),
    }


def continuations(tiny: Any, length: int = 12) -> dict[str, Any]:
    """Continue each prompt greedily, and find the smallest gap between the best two logits."""
    written, gaps = [], []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = tiny.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.cat(output.logits).topk(2).values
        gaps.append((best[:, 0] - best[:, 1]).min().item())
        written.append(output.sequences[0, len(prompt) :].tolist())
    return {"continuations": written, "smallest_gap": round(min(gaps), 5)}


def training() -> dict[str, Any]:
    """Six steps of LoRA on the pieces, and four of full tuning by `fine_tune`."""
    return {"lora": lora_steps(), "full": full_steps()}


def lora_steps(num_steps: int = 6) -> dict[str, Any]:
    """Tune with LoRA by the library's own pieces, from an A that is given."""
    tuned = lora.attach(
        tiny_model(), LoraSection(r=4, lora_alpha=8, target_modules=("query_key_value",))
    )
    with torch.no_grad():
        for name, layer in adapted_layers(tuned):
            weight = layer.lora_A["default"].weight
            weight.copy_(torch.from_numpy(uniform(f"{name}.lora_A", weight.shape) * 0.2))
    section = TrainingSection(learning_rate=0.01, adam_epsilon=1e-6, weight_decay=0.01)
    optimizer = make_optimizer(tuned, section)
    scheduler = make_scheduler(optimizer, section, num_steps)
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    examples = examples_of_ids()
    record: dict[str, Any] = {"loss": [], "grad_norm": [], "learning_rate": []}
    tuned.train()
    for _ in range(num_steps):
        packs = [pack_examples(examples, rows) for rows in ([0, 1, 2], [3, 4, 5])]
        num_learned = sum(count_learned_tokens(part.labels) for part in packs)
        losses = [next_token_loss(tuned, part) / num_learned for part in packs]
        for loss in losses:
            loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        record["loss"].append(round(sum(loss.item() for loss in losses), 5))
        record["grad_norm"].append(round(norm.item(), 5))
        record["learning_rate"].append(scheduler.get_last_lr()[0])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    record["weight_norms"] = rounded(torch.stack([weight.detach().norm() for weight in trained]))
    return record


def full_steps() -> dict[str, Any]:
    """Tune every weight by `fine_tune`; a step holds all rows, so their order does not matter."""
    questions = ("北京在哪里？", "一加一等于多少？", "你好", "What is a noun?")
    answers = ("在华北。", "二。", "你好！有什么事？", "A word for a thing.")
    rows = [
        {"instruction": question, "input": "", "output": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]
    tokenizer: Any = load_tokenizer("nano")
    assert isinstance(tokenizer, ChatGLMTokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model(padded_vocab_size=6016).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        tree = {
            "model": {"name_or_path": str(folder / "model")},
            "data": {"train": str(folder / "rows.json"), "max_length": 64},
            "adapter": {"method": "full"},
            "training": {
                "per_device_train_batch_size": len(rows),
                "gradient_accumulation_steps": 1,
                "max_steps": 4,
                "learning_rate": 2e-3,
                "adam_epsilon": 1e-6,
                "logging_steps": 1,
                "save_strategy": "no",
                "use_cpu": True,
            },
            "lint": {"before_training": False},
            "checks": {
                "stock_reader": False,
                "stop_prompts": 0,
                "max_new_tokens": 4,
                "forgetting": None,
            },
            "output": {"dir": str(folder / "out"), "report_to": "none"},
        }
        fine_tune(build_recipe(tree))
        text = (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    return {key: [round(line[key], 5) for line in lines] for key in ("loss", "grad_norm")} | {
        "learning_rate": [line["learning_rate"] for line in lines]
    }


VECTORS: dict[str, Callable[[], dict[str, Any]]] = {
    "tokens": tokens,
    "infilling": infilling,
    "packing": packing,
    "model": model,
    "training": training,
}


# ---- files --------------------------------------------------------------------------------------


def stored(name: str) -> dict[str, Any]:
    """Read a file of vectors."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def differences(made: Any, expected: Any, tolerance: float, where: str = "") -> list[str]:
    """List where two trees of JSON differ: numbers by more than a tolerance, the rest at all."""
    if isinstance(expected, dict) and isinstance(made, dict) and made.keys() == expected.keys():
        return [
            found
            for key in expected
            for found in differences(made[key], expected[key], tolerance, f"{where}.{key}")
        ]
    if isinstance(expected, list) and isinstance(made, list) and len(made) == len(expected):
        return [
            found
            for index, (one, other) in enumerate(zip(made, expected, strict=True))
            for found in differences(one, other, tolerance, f"{where}[{index}]")
        ]
    if isinstance(expected, float) and isinstance(made, float):
        is_equal = abs(made - expected) <= tolerance
    else:
        is_equal = type(made) is type(expected) and made == expected
    return [] if is_equal else [f"{where}: got {made!r:.200}, expected {expected!r:.200}"]


def check(name: str) -> list[str]:
    """Make one set of vectors again and list where it differs from its file."""
    made = json.loads(json.dumps(VECTORS[name]()))
    return differences(made, stored(name), TOLERANCES.get(name, 0.0), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        found = [difference for name in VECTORS for difference in check(name)]
        print("\n".join(found) or "All vectors are as recorded.")
        sys.exit(bool(found))
    for name, make in VECTORS.items():
        text = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
