"""Faults of what a run left: copies that broke, edits, and things that belong to another run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from glmtune.model.chatglm.train_tokenizer import train_tokenizer

WEIGHTS = "adapter_model.safetensors"
BASE_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Place:
    """Copies of a base, an adapter over it, the adapter of another run, and both merged."""

    base: Path
    adapter: Path
    other: Path
    merged: Path


@dataclass(frozen=True, slots=True)
class ArtefactFault:
    """How it is planted, what is opened over which base, and what must be said.

    Attributes:
        plant: changes the copies.
        words: of the error or the warning.
        opened: "adapter" over "base", or over "merged"; "merged" alone; "adapter into base" merges.
        layout: that is asked for; None takes that of the folder.
    """

    plant: Callable[[Place], Any]
    words: str
    opened: str = "adapter over base"
    layout: Any = None


def _tensors(name: str, change: Callable[[dict[str, Any]], Any], of: str = "adapter") -> Any:
    def plant(place: Place) -> None:
        path = getattr(place, of) / name
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return plant


def _json(name: str, of: str = "adapter", **values: Any) -> Callable[[Place], Any]:
    def plant(place: Place) -> None:
        path = getattr(place, of) / name
        tree = json.loads(path.read_text(encoding="utf-8"))
        assert tree.keys() & values.keys()
        path.write_text(json.dumps({**tree, **values}), encoding="utf-8")

    return plant


def _zero_one(tensors: dict[str, Any]) -> None:
    name = next(name for name in tensors if "lora_B" in name or "dense" in name)
    tensors[name] = torch.zeros_like(tensors[name])


def _zero_all(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = torch.zeros_like(tensor)


def _swap(part: str) -> Callable[[dict[str, Any]], Any]:
    def change(tensors: dict[str, Any]) -> None:
        first, second = [n for n in tensors if part in n][:2]
        tensors[first], tensors[second] = tensors[second].clone(), tensors[first].clone()

    return change


def _nan(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def _negate(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = -tensor if "lora_B" in name else tensor


def _round(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(torch.bfloat16).float()


def _quantize(place: Place) -> None:
    path = place.base / "config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps({**tree, "quantization_config": method}), encoding="utf-8")


def _halve(name: str, of: str = "adapter") -> Callable[[Place], Any]:
    def plant(place: Place) -> None:
        path = getattr(place, of) / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return plant


def _noise(tensors: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(7)
    for name, tensor in tensors.items():
        tensors[name] = torch.randn(tensor.shape, generator=generator) * tensor.std()


def _of_another_run(*names: str) -> Callable[[Place], Any]:
    def plant(place: Place) -> None:
        for name in names:
            shutil.copy(place.other / name, place.adapter / name)

    return plant


def _other_tokenizer(of: str) -> Callable[[Place], Any]:
    def plant(place: Place) -> None:
        texts = ["一二三四五六七八九十。", "hello world, how are you?"] * 20
        train_tokenizer(texts, 300, getattr(place, of))

    return plant


def _nothing(place: Place) -> None:
    pass


CHANGED = "is not what was written"
ARTEFACT_FAULTS: dict[str, ArtefactFault] = {
    "one tensor of the adapter zeroed": ArtefactFault(_tensors(WEIGHTS, _zero_one), CHANGED),
    "the whole adapter zeroed": ArtefactFault(_tensors(WEIGHTS, _zero_all), CHANGED),
    "two layers of the adapter swapped": ArtefactFault(_tensors(WEIGHTS, _swap("lora_A")), CHANGED),
    "the sign of the update turned": ArtefactFault(_tensors(WEIGHTS, _negate), CHANGED),
    "the adapter rounded to half precision": ArtefactFault(_tensors(WEIGHTS, _round), CHANGED),
    "a NaN in the adapter": ArtefactFault(_tensors(WEIGHTS, _nan), CHANGED),
    "the adapter half written": ArtefactFault(_halve(WEIGHTS), ""),
    "the weights of another run": ArtefactFault(_of_another_run(WEIGHTS), CHANGED),
    "the configuration of another run": ArtefactFault(
        _of_another_run("adapter_config.json"), CHANGED
    ),
    "lora_alpha edited": ArtefactFault(_json("adapter_config.json", lora_alpha=64), CHANGED),
    "the rank edited": ArtefactFault(_json("adapter_config.json", r=2), ""),
    "the layers edited": ArtefactFault(
        _json("adapter_config.json", target_modules=["dense"]), CHANGED
    ),
    "the base of rotary embeddings changed": ArtefactFault(
        _json("config.json", "base", rope_ratio=2.0), "rope_ratio"
    ),
    "the epsilon of the norms changed": ArtefactFault(
        _json("config.json", "base", layernorm_epsilon=1e-2), "layernorm_epsilon"
    ),
    "another base of the same shape": ArtefactFault(
        _tensors(BASE_WEIGHTS, _noise, "base"), "other weights"
    ),
    "a layer of the base blanked": ArtefactFault(
        _tensors(BASE_WEIGHTS, _zero_one, "base"), "layers"
    ),
    "two layers of the base swapped": ArtefactFault(
        _tensors(BASE_WEIGHTS, _swap("query_key_value.weight"), "base"), "layers"
    ),
    "a NaN in the base": ArtefactFault(_tensors(BASE_WEIGHTS, _nan, "base"), ""),
    "the base half written": ArtefactFault(_halve(BASE_WEIGHTS, "base"), ""),
    "the tokenizer of the base exchanged": ArtefactFault(_other_tokenizer("base"), ""),
    "prompts of another layout": ArtefactFault(_nothing, "tutorial", layout="tutorial"),
    "the adapter over the model it was merged into": ArtefactFault(
        _nothing, "other weights", "adapter over merged"
    ),
    "merged into a base of 4 bits": ArtefactFault(
        _quantize, "its weights are quantized", "adapter into base"
    ),
    "a tensor of the merged model zeroed": ArtefactFault(
        _tensors(BASE_WEIGHTS, _zero_one, "merged"), CHANGED, "merged"
    ),
    "the tokenizer of the merged model exchanged": ArtefactFault(
        _other_tokenizer("merged"), "", "merged"
    ),
    "the merged model half written": ArtefactFault(_halve(BASE_WEIGHTS, "merged"), "", "merged"),
    "the configuration of the merged model edited": ArtefactFault(
        _json("config.json", "merged", layernorm_epsilon=1e-3), CHANGED, "merged"
    ),
}
