"""Folders of models, adapters and runs with mutated files: used or refused, never a traceback.

Each surface copies a healthy folder, mutates one of its files by a seed, and uses it as commands
do. Anything but a `GlmtuneError` fails the test, and the seed is in the message. `GLMTUNE_FUZZ=100`
tries a hundred times as many.
"""

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fuzz.mutations import Mutation, mutate_bytes, mutate_json, number_of_trials

from glmtune.conversation import Conversation, Message
from glmtune.errors import GlmtuneError
from glmtune.inspect.adapter import describe_adapter, is_adapter
from glmtune.inspect.checkpoint import describe_model
from glmtune.methods import method
from glmtune.model.load import load_config, load_model, load_tokenizer
from glmtune.prove.metrics import MetricsFile, cut_metrics
from glmtune.prove.report.facts import ReportFacts
from glmtune.prove.report.page import rewrite_report, write_report
from glmtune.recipe.methods import (
    AdapterSection,
    LoraSection,
    PrefixTuningSection,
    PtuningV2Section,
)
from glmtune.template.select import template_for
from glmtune.train.checkpoint import TrainerState, damage, load_state
from glmtune.use.open import base_of

SLOWEST_SECONDS = 20


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Neither logs nor warnings of hundreds of damaged folders."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def fuzz(
    healthy: Path,
    names: Mapping[str, Mutation],
    use: Callable[[Path], Any],
    tmp_path: Path,
    trials: int,
) -> None:
    """Use a healthy folder, then many with a mutated file."""
    use(healthy)
    refused, folder = 0, tmp_path / "mutated"
    for seed in range(number_of_trials(trials)):
        random = Random(f"{healthy.name} {sorted(names)} {seed}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(healthy, folder)
        name = random.choice(sorted(names))
        mutate = mutate_bytes if random.random() < 0.25 else names[name]
        mutate(folder / name, random)
        if random.random() < 0.5:
            (folder / "glmtune.json").unlink(missing_ok=True)  # or checksums notice everything
        began, message = time.monotonic(), ""
        try:
            use(folder)
        except GlmtuneError as error:
            message = str(error)
        except BaseException as error:
            raise AssertionError(f"seed {seed} of {name}: {error!r}") from error
        refused += bool(message)
        message.encode("utf-8")  # it can be printed
        assert len(message) < 4000, f"seed {seed} of {name}: {message[:200]}"
        assert time.monotonic() - began < SLOWEST_SECONDS, f"seed {seed} of {name} is slow"
    assert refused > trials / 10  # or the mutations were harmless


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(tiny_model_dir, folder)
    return folder


def answer(model: Any) -> None:
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))


def use_model(folder: Path) -> None:
    def prompt(name: str) -> None:
        template_for(load_tokenizer(name)).prompt_ids(Conversation((Message("user", "你好"),)))

    refusals = []
    for step in (describe_model, load_config, prompt, lambda name: answer(load_model(name))):
        try:
            step(str(folder))
        except GlmtuneError as error:
            refusals.append(error)
    if refusals:
        raise refusals[-1]


def test_config_and_tokenizer_files(model: Path, tmp_path: Path) -> None:
    names = {"config.json": mutate_json, "tokenizer_config.json": mutate_json}
    names["generation_config.json"] = mutate_json
    fuzz(model, names, use_model, tmp_path, 60)


def test_configs_alone(model: Path, tmp_path: Path) -> None:
    """`info` and `plan` take a folder with nothing but a configuration."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(model / "config.json", folder)

    def use(path: Path) -> None:
        describe_model(str(path))
        load_config(path)

    fuzz(folder, {"config.json": mutate_json}, use, tmp_path, 120)


def test_pieces_of_the_tokenizer(model: Path, tmp_path: Path) -> None:
    fuzz(model, {"tokenizer.model": mutate_bytes}, load_tokenizer, tmp_path, 100)


def test_weights_of_safetensors(model: Path, tmp_path: Path) -> None:
    fuzz(model, {"model.safetensors": mutate_bytes}, use_weights, tmp_path, 100)


def use_weights(folder: Path) -> None:
    describe_model(str(folder))
    answer(load_model(folder))


def test_weights_in_shards_of_bin(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {
        "pytorch_model-1.bin": sorted(tensors)[::2],
        "pytorch_model-2.bin": sorted(tensors)[1::2],
    }
    weight_map = {name: file for file, names in parts.items() for name in names}
    for file, names in parts.items():
        torch.save({name: tensors[name] for name in names}, folder / file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    mutations = {index.name: mutate_json} | dict.fromkeys(parts, mutate_bytes)
    fuzz(folder, mutations, use_weights, tmp_path, 100)


@pytest.mark.parametrize(
    "section",
    [LoraSection(r=2), PtuningV2Section(pre_seq_len=3), PrefixTuningSection(num_virtual_tokens=3)],
    ids=["lora", "ptuning_v2", "prefix_tuning"],
)
def test_adapters(section: AdapterSection, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / section.method
    attached = method.attach(load_model(model, attn_implementation="sdpa"), section)
    method.save(attached, folder, template_for(load_tokenizer(model)))

    def use(path: Path) -> None:
        if is_adapter(path):
            describe_adapter(path)
            base_of(path)
        answer(method.load(load_model(model), path))

    names = {"glmtune.json": mutate_json}
    if isinstance(section, PtuningV2Section):
        names |= {"config.json": mutate_json, "pytorch_model.bin": mutate_bytes}
    else:
        names |= {"adapter_config.json": mutate_json, "adapter_model.safetensors": mutate_bytes}
    fuzz(folder, names, use, tmp_path, 100)


def test_what_a_run_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("model: {name_or_path: nano}\n")
    metrics = MetricsFile(folder / "metrics.jsonl")
    for step in range(1, 9):
        metrics.write({"step": step, "loss": 3 / step, "eval_loss": 2.0, "learning_rate": 1e-4})
    write_report(folder, ReportFacts(num_steps=8, seconds=3.5, is_finished=True))

    def use(path: Path) -> None:
        cut_metrics(path / "metrics.jsonl", 8)
        rewrite_report(path)

    def mutate_a_line(path: Path, random: Random) -> None:
        lines = path.read_text().splitlines()
        one = path.with_name("line.json")
        at = random.randrange(len(lines))
        one.write_text(lines[at])
        mutate_json(one, random)
        lines[at] = one.read_text()
        path.write_text("\n".join(lines) + "\n")

    names = {"metrics.jsonl": mutate_a_line, "report.json": mutate_json}
    fuzz(folder, names, use, tmp_path, 300)


def test_the_state_of_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    state = TrainerState(step=3, identity={"recipe": "abc"}, best_eval_loss=1.5, best_step=2)
    (folder / "trainer_state.json").write_text(json.dumps(asdict(state)))
    (folder / "checksums.json").write_text(json.dumps({"trainer_state.json": "0" * 64}))

    def use(path: Path) -> None:
        damage(path)
        load_state(path)

    names = {"trainer_state.json": mutate_json, "checksums.json": mutate_json}
    fuzz(folder, names, use, tmp_path, 300)
