"""The golden vectors of this folder, and the plain computations that tie them to the original.

The vectors were made by the code that they test, so by themselves they only show that nothing
changed. `plain_logits` and `plain_ids` are computed here a second time, in NumPy and with
SentencePiece alone. They give our vectors, and, where the vectors of the original code are at hand,
those too.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sentencepiece import SentencePieceProcessor
from tests.golden import make

from glmtune.model.files import locate
from glmtune.use.generate import Request, Sampling, generate

Array = NDArray[np.float64]


@pytest.mark.parametrize("name", make.VECTORS)
def test_the_code_gives_the_recorded_vectors(name: str) -> None:
    assert make.check(name) == []


def test_a_difference_between_vectors_is_named() -> None:
    expected = {"ids": [1, 2, 3], "loss": [0.5]}

    assert make.differences({"ids": [1, 2, 3], "loss": [0.50001]}, expected, 1e-4) == []
    assert make.differences({"ids": [1, 2, 4], "loss": [0.6]}, expected, 1e-4, "x") == [
        "x.ids[2]: got 4, expected 3",
        "x.loss[0]: got 0.6, expected 0.5",
    ]
    assert make.differences({"ids": [1, 2]}, expected, 1e-4) != []


def test_every_layout_and_every_objective_has_vectors() -> None:
    layouts = make.stored("tokens")["layouts"]
    cases = {name: len(layout["conversations"]) for name, layout in layouts.items()}
    steps = {level: len(made) for level, made in make.stored("infilling").items()}

    assert cases == {"official": 4, "tutorial": 4, "chatglm2": 2, "plain": 2}
    assert steps == {"token": 2, "sentence": 2, "document": 2, "causal": 2}


def test_our_generator_writes_the_recorded_continuations_together_and_one_by_one() -> None:
    model = make.tiny_model()
    requests = [Request(prompt, max_new_tokens=12) for prompt in make.PROMPTS]
    expected = make.stored("model")["continuations"]

    for num_rows in (1, 2, 3):
        written = generate(
            model, requests, stop_ids=(), sampling=Sampling(temperature=0), batch_size=num_rows
        )
        assert [w.ids for w in sorted(written, key=lambda w: w.index)] == expected


# ---- a second computation -----------------------------------------------------------------------


def plain_logits(weights: dict[str, Array], ids: list[int], eps: float = 1e-5) -> Array:
    """ChatGLM in float64, with the shape that its weights say and heads of 16: (seq, vocab)."""
    head_dim, heads = 16, 4

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"]

    def rotate(x: Array) -> Array:  # (seq, heads, head_dim): neighbors of the first half turn
        turned = x.copy()
        for pair in range(head_dim // 4):
            angle = np.arange(len(x))[:, None] * 10000.0 ** (-2 * pair / (head_dim // 2))
            a, b = x[..., 2 * pair], x[..., 2 * pair + 1]
            turned[..., 2 * pair] = a * np.cos(angle) - b * np.sin(angle)
            turned[..., 2 * pair + 1] = b * np.cos(angle) + a * np.sin(angle)
        return turned

    hidden = weights["transformer.embedding.word_embeddings.weight"][ids]
    num_layers = sum(name.endswith("dense_4h_to_h.weight") for name in weights)
    for index in range(num_layers):
        layer = f"transformer.encoder.layers.{index}"
        fused = norm(hidden, f"{layer}.input_layernorm")
        fused = fused @ weights[f"{layer}.self_attention.query_key_value.weight"].T
        fused = fused + weights[f"{layer}.self_attention.query_key_value.bias"]
        parts = fused.reshape(len(ids), -1, head_dim)
        kv_heads = (parts.shape[1] - heads) // 2
        query, key, value = np.split(parts, [heads, heads + kv_heads], axis=1)
        key, value = (np.repeat(part, heads // kv_heads, axis=1) for part in (rotate(key), value))
        scores = np.einsum("qhd,khd->hqk", rotate(query), key) / np.sqrt(head_dim)
        scores += np.triu(np.full((len(ids), len(ids)), -np.inf), k=1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", shares, value).reshape(len(ids), -1)
        hidden = hidden + attended @ weights[f"{layer}.self_attention.dense.weight"].T
        inner = norm(hidden, f"{layer}.post_attention_layernorm")
        gate, up = np.split(inner @ weights[f"{layer}.mlp.dense_h_to_4h.weight"].T, 2, axis=-1)
        activated = gate / (1 + np.exp(-gate)) * up
        hidden = hidden + activated @ weights[f"{layer}.mlp.dense_4h_to_h.weight"].T
    hidden = norm(hidden, "transformer.encoder.final_layernorm")
    logits: Array = hidden @ weights["transformer.output_layer.weight"].T
    return logits


def test_a_plain_decoder_in_numpy_gives_the_recorded_logits_and_loss() -> None:
    recorded = make.stored("model")
    weights = {
        name: weight.detach().double().numpy()
        for name, weight in make.tiny_model().named_parameters()
    }

    logits = plain_logits(weights, list(make.PROMPTS[1]))

    found = logits[:, recorded["columns"]].ravel()
    np.testing.assert_allclose(found, recorded["logits"], atol=2e-4)
    total, count = 0.0, 0
    for example in make.examples_of_ids():
        scores = plain_logits(weights, example.input_ids)[:-1]
        for score, label in zip(scores, example.labels[1:], strict=True):
            if label >= 0:
                total += float(np.log(np.exp(score).sum()) - score[label])
                count += 1
    assert total / count == pytest.approx(recorded["mean_loss"], abs=2e-4)


def test_the_same_decoder_in_numpy_gives_the_logits_of_the_original(golden: Path) -> None:
    stored = load_file(golden / "tiny-model" / "model.safetensors")
    weights = {name: weight.astype(np.float64) for name, weight in stored.items()}
    vectors = load_file(golden / "tiny-model" / "golden.safetensors")
    assert len(vectors["plain.input_ids"]) > 0

    for ids, expected in zip(vectors["plain.input_ids"], vectors["plain.logits"], strict=True):
        np.testing.assert_allclose(plain_logits(weights, ids.tolist()), expected, atol=1e-4)


def plain_ids(sp: SentencePieceProcessor, turns: list[tuple[str, str, str]]) -> list[int]:
    """Turns of (role, metadata, text) -> ids in the official layout, by SentencePiece alone."""
    special = (
        "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop",
        "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    )  # fmt: skip
    id_of = {token: len(sp) + index for index, token in enumerate(special)}
    ids = [id_of["[gMASK]"], id_of["sop"]]
    for role, metadata, text in turns:
        ids += [id_of[f"<|{role}|>"], *sp.encode(f"{metadata}\n"), *sp.encode(text)]
    return ids


def test_sentencepiece_alone_gives_the_recorded_ids() -> None:
    sp = SentencePieceProcessor(model_file=str(Path(locate("nano")) / "tokenizer.model"))
    recorded = make.stored("tokens")["layouts"]["official"]["conversations"]

    assert len(recorded) == len(make.CONVERSATIONS)
    for name, messages in make.CONVERSATIONS.items():
        turns: list[tuple[str, str, str]] = [(m.role, m.metadata, m.text) for m in messages]
        assert recorded[name]["input_ids"] == [*plain_ids(sp, turns), sp.eos_id()], name


def test_sentencepiece_alone_gives_the_ids_of_the_original(golden: Path) -> None:
    sp = SentencePieceProcessor(model_file=str(golden / "chatglm3-tokenizer" / "tokenizer.model"))
    cases = json.loads((golden / "chat.json").read_text(encoding="utf-8"))["cases"]
    single = [case for case in cases if not case["history"]]

    assert len(single) > 5
    for case in single:
        ids = plain_ids(sp, [(case["role"], "", case["query"])])
        assert case["input_ids"] == [*ids, len(sp) + 7]  # and <|assistant|>


def test_rounding_is_far_below_the_tolerances() -> None:
    """Fused and eager attention sum in another order, as another processor would."""
    recorded: dict[str, Any] = make.stored("model")
    with torch.no_grad():
        eager = make.tiny_model("eager")(torch.tensor([make.PROMPTS[1]])).logits[0]
    found = eager[:, recorded["columns"]].double().numpy().ravel()

    worst = np.abs(found - np.array(recorded["logits"])).max()
    assert worst < make.TOLERANCES["model"] / 10
    assert recorded["smallest_gap"] > 100 * make.TOLERANCES["model"]  # of greedy choices
