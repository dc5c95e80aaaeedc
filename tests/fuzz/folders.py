"""Folders of models, adapters and runs with a mutated file, used as commands use them."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from tests.fuzz.mutations import Mutation, mutate_bytes, mutate_json
from tests.fuzz.surface import Attempt, Healthy, Surface

from glmtune.conversation import Conversation, Message
from glmtune.errors import GlmtuneError
from glmtune.inspect.adapter import describe_adapter, is_adapter
from glmtune.inspect.checkpoint import describe_model
from glmtune.methods import method
from glmtune.model.card import verify
from glmtune.model.load import load_config, load_model, load_tokenizer
from glmtune.prove.card import find_paths, without_paths
from glmtune.prove.folder_card import card_for, facts_of
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
from glmtune.use.export.push import pack
from glmtune.use.open import base_of


def mutated(healthy: Path, names: Mapping[str, Mutation], use: Callable[[Path], object]) -> Attempt:
    """Copy a healthy folder, mutate one of its files and use it."""
    use(healthy)

    def attempt(random: Random, folder: Path) -> None:
        copy = folder / healthy.name
        shutil.copytree(healthy, copy)
        name = random.choice(sorted(names))
        mutate = mutate_bytes if random.random() < 0.25 else names[name]
        mutate(copy / name, random)
        if random.random() < 0.5:
            (copy / "glmtune.json").unlink(missing_ok=True)  # or checksums notice everything
        use(copy)

    return attempt


def in_turn(*steps: Callable[[Any], object]) -> Callable[[Path], None]:
    """Use a folder in several ways; a refusal of one does not keep the others from being tried."""

    def use(folder: Path) -> None:
        refusals = []
        for step in steps:
            try:
                step(folder)
            except GlmtuneError as error:
                refusals.append(error)
        if refusals:
            raise refusals[-1]

    return use


def answer(model: Any) -> None:
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))


def prompt(folder: Path) -> None:
    template_for(load_tokenizer(folder)).prompt_ids(Conversation((Message("user", "你好"),)))


def load_and_answer(folder: Path) -> None:
    answer(load_model(folder))


def _describe(folder: Path) -> None:
    describe_model(str(folder))


def of_model_files(healthy: Healthy) -> Attempt:
    names = ("config.json", "tokenizer_config.json", "generation_config.json")
    use = in_turn(_describe, load_config, prompt, load_and_answer)
    return mutated(healthy.model, dict.fromkeys(names, mutate_json), use)


def of_configs_alone(healthy: Healthy) -> Attempt:
    """`info` and `plan` take a folder with nothing but a configuration."""
    folder = healthy.folder / "alone"
    folder.mkdir()
    shutil.copy(healthy.model / "config.json", folder)
    return mutated(folder, {"config.json": mutate_json}, in_turn(_describe, load_config))


def of_another_family(healthy: Healthy) -> Attempt:
    """A Llama: its configuration, its tokenizer and its chat template are a library's."""
    assert healthy.llama is not None
    names = {"config.json": mutate_json, "tokenizer_config.json": mutate_json}
    names |= {"tokenizer.json": mutate_json}
    jinja = [path.name for path in healthy.llama.glob("*.jinja")]
    use = in_turn(_describe, load_config, prompt, load_and_answer)
    return mutated(healthy.llama, names | dict.fromkeys(jinja, mutate_bytes), use)


def of_pieces(healthy: Healthy) -> Attempt:
    return mutated(healthy.model, {"tokenizer.model": mutate_bytes}, load_tokenizer)


def of_safetensors(healthy: Healthy) -> Attempt:
    use = in_turn(_describe, load_and_answer)
    return mutated(healthy.model, {"model.safetensors": mutate_bytes}, use)


def of_shards(healthy: Healthy) -> Attempt:
    folder = healthy.folder / "shards"
    shutil.copytree(healthy.model, folder)
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
    mutations: dict[str, Mutation] = {index.name: mutate_json}
    mutations |= dict.fromkeys(parts, mutate_bytes)
    return mutated(folder, mutations, in_turn(_describe, load_and_answer))


def _of_adapter(section: AdapterSection) -> Callable[[Healthy], Attempt]:
    def prepare(healthy: Healthy) -> Attempt:
        folder = healthy.folder / section.method
        attached = method.attach(load_model(healthy.model, attn_implementation="sdpa"), section)
        method.save(attached, folder, healthy.template)

        def describe(path: Path) -> None:
            if is_adapter(path):
                describe_adapter(path)
                base_of(path)

        def use(path: Path) -> None:
            describe(path)
            answer(method.load(load_model(healthy.model), path))

        names: dict[str, Mutation] = {"glmtune.json": mutate_json}
        if isinstance(section, PtuningV2Section):
            names |= {"config.json": mutate_json, "pytorch_model.bin": mutate_bytes}
        else:
            names |= {"adapter_config.json": mutate_json}
            names |= {"adapter_model.safetensors": mutate_bytes}
        return mutated(folder, names, use)

    return prepare


def of_published_folders(healthy: Healthy) -> Attempt:
    """`push` and `info --verify` of the folder of a run."""
    folder = healthy.folder / "published"
    attached = method.attach(load_model(healthy.model, attn_implementation="sdpa"), LoraSection())
    method.save(attached, folder, healthy.template)
    recipe = "model: {name_or_path: zai-org/chatglm3-6b}\ndata: {train: rows.json}\n"
    (folder / "recipe.yaml").write_text(f"{recipe}output: {{dir: out}}\n")
    write_report(folder, ReportFacts(num_steps=8, seconds=3.5, is_finished=True))
    (folder / "export.json").write_text('{"status": "complete", "format": "vllm", "proofs": []}')

    def publish(path: Path) -> None:
        facts = facts_of(path, base="zai-org/chatglm3-6b", license_id="other")
        card = card_for(path, facts, "me/it")
        pack(path, card, facts.base, shorten=without_paths, find_paths=find_paths)

    def verify_all(path: Path) -> None:
        verify(path, whole=True)

    names: dict[str, Mutation] = dict.fromkeys(
        ("glmtune.json", "adapter_config.json", "report.json", "export.json"), mutate_json
    )
    names["recipe.yaml"] = mutate_bytes
    return mutated(folder, names, in_turn(publish, verify_all))


def of_what_a_run_left(healthy: Healthy) -> Attempt:
    folder = healthy.folder / "run"
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

    return mutated(folder, {"metrics.jsonl": mutate_a_line, "report.json": mutate_json}, use)


def of_checkpoint_states(healthy: Healthy) -> Attempt:
    folder = healthy.folder / "checkpoint-3"
    folder.mkdir()
    state = TrainerState(step=3, identity={"recipe": "abc"}, best_eval_loss=1.5, best_step=2)
    (folder / "trainer_state.json").write_text(json.dumps(asdict(state)))
    (folder / "checksums.json").write_text(json.dumps({"trainer_state.json": "0" * 64}))

    def use(path: Path) -> None:
        damage(path)
        load_state(path)

    names = {"trainer_state.json": mutate_json, "checksums.json": mutate_json}
    return mutated(folder, names, use)


SURFACES = (
    Surface("model files", of_model_files, 3),
    Surface("config.json alone", of_configs_alone, 6),
    Surface("another family", of_another_family, 3),
    Surface("tokenizer.model", of_pieces, 5),
    Surface("safetensors", of_safetensors, 4),
    Surface("shards of .bin", of_shards, 4),
    Surface("LoRA folders", _of_adapter(LoraSection(r=2)), 4),
    Surface("P-Tuning v2 folders", _of_adapter(PtuningV2Section(pre_seq_len=3)), 4),
    Surface("prefix tuning folders", _of_adapter(PrefixTuningSection(num_virtual_tokens=3)), 4),
    Surface("folders to publish", of_published_folders, 5),
    Surface("what a run left", of_what_a_run_left, 8),
    Surface("states of checkpoints", of_checkpoint_states, 8),
)
