"""Our losses of pairs and of labeled rows beside TRL's, on the same model and the same ids."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.data.batches import micro_batch_of
from glmtune.data.packing import pack
from glmtune.objective.kto import Kto
from glmtune.objective.preference import Preference, pair_losses
from glmtune.recipe.methods import LoraSection
from glmtune.recipe.sections import PreferenceSection
from glmtune.template.base import IGNORE, Example

SIDES = [  # two pairs, of the same question each
    Example([3, 4, 5, 9, 2], [IGNORE] * 3 + [9, 2]),
    Example([3, 4, 5, 8, 7, 6, 2], [IGNORE] * 3 + [8, 7, 6, 2]),
    Example([11, 12, 20, 21, 2], [IGNORE] * 2 + [20, 21, 2]),
    Example([11, 12, 2], [IGNORE] * 2 + [2]),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo"])
def test_a_pack_of_pairs_has_the_loss_of_trl(tmp_path: Path, name: Any) -> None:
    trl = pytest.importorskip("trl", reason="compares with TRL: pip install trl")
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from glmtune.methods import lora
    from glmtune.methods.layers import adapted_layers
    from glmtune.model.load import load_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = lora.attach(load_model(tmp_path), LoraSection(r=2, target_modules=("q_proj", "v_proj")))
    tokenizer = tiny_tokenizer(PreTrainedTokenizerFast)
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), loss_type=name, beta=0.3, use_cpu=True,
            report_to="none", bf16=False, activation_checkpointing=False, max_length=16,
            per_device_train_batch_size=2,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    )  # fmt: skip
    for _, layer in adapted_layers(model):  # now: TRL has kept a copy as its reference
        layer.lora_B["default"].weight.data.normal_(0, 0.3)
    better, worse = SIDES[::2], SIDES[1::2]
    rows = [
        {
            "prompt_ids": [
                i for i, label in zip(b.input_ids, b.labels, strict=True) if label == IGNORE
            ],
            "chosen_ids": [label for label in b.labels if label != IGNORE],
            "rejected_ids": [label for label in w.labels if label != IGNORE],
        }
        for b, w in zip(better, worse, strict=True)
    ]
    theirs = trainer.compute_loss(model.eval(), trainer.data_collator(rows))

    model.base_model.model.set_attn_implementation("packed")
    section = PreferenceSection(loss=name, beta=0.3)
    ours = Preference(section).loss(model, micro_batch_of(pack(SIDES), rows=(0, 1))) / 2

    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_step_of_labeled_rows_has_the_loss_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="compares with TRL: pip install trl")
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from glmtune.methods import lora
    from glmtune.methods.layers import adapted_layers
    from glmtune.model.load import load_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = lora.attach(load_model(tmp_path), LoraSection(r=2, target_modules=("q_proj", "v_proj")))
    trainer = trl.KTOTrainer(
        model=model,
        args=trl.KTOConfig(
            output_dir=str(tmp_path / "trl"), beta=0.3, undesirable_weight=1.5, use_cpu=True,
            report_to="none", bf16=False, activation_checkpointing=False, max_length=16,
            per_device_train_batch_size=4,
        ),
        processing_class=tiny_tokenizer(PreTrainedTokenizerFast),
        train_dataset=Dataset.from_list(
            4 * [{"prompt": "a", "completion": "b", "label": True},
                 {"prompt": "a", "completion": "c", "label": False}]
        ),
    )  # fmt: skip
    for _, layer in adapted_layers(model):
        layer.lora_B["default"].weight.data.normal_(0, 0.3)
    labels = torch.tensor([True, False, False, True])
    prompts = [
        [i for i, y in zip(s.input_ids, s.labels, strict=True) if y == IGNORE] for s in SIDES
    ]
    answers = [[y for y in side.labels if y != IGNORE] for side in SIDES]
    rows = [
        {
            "prompt_ids": prompts[row],
            "completion_ids": answers[row],
            "KL_completion_ids": answers[(row + 2) % 4],
            "label": bool(labels[row]),
        }
        for row in range(4)
    ]
    theirs = trainer.compute_loss(model.eval(), trainer.data_collator(rows))

    model.base_model.model.set_attn_implementation("packed")
    part = replace(micro_batch_of(pack(SIDES), rows=range(4)), is_good=labels)
    section = PreferenceSection(stage="kto", beta=0.3, undesirable_weight=1.5)
    ours = Kto(section, max_length=16)
    ours.begin(model, [part], torch.device("cpu"))

    torch.testing.assert_close(ours.loss(model, part) / 4, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_losses_without_a_reference_are_those_of_trl() -> None:
    pytest.importorskip("trl", reason="compares with TRL: pip install trl")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    better, worse = torch.tensor([-0.5, -2.0]), torch.tensor([-0.9, -1.5])  # per token
    theirs = SimpleNamespace(
        **{"loss_type": "simpo", "beta": 0.3, "simpo_gamma": 0.5, "label_smoothing": 0.0},
        **{"alpha": 0.0, "accelerator": SimpleNamespace(device="cpu")},
    )

    simpo, *_ = CPOTrainer.cpo_loss(theirs, better, worse)
    preferred, *_ = ORPOTrainer.odds_ratio_loss(theirs, better, worse)

    ours = pair_losses(better, worse, PreferenceSection(loss="simpo", beta=0.3))
    torch.testing.assert_close(ours, simpo)
    ours = pair_losses(better, worse, PreferenceSection(loss="orpo", beta=0.3))
    torch.testing.assert_close(ours, -better - preferred)  # theirs adds the loss of the better
    assert F.relu(ours).all()


def tiny_tokenizer(kind: Any) -> Any:
    """A tokenizer that TRL can ask; the rows that are compared do not come from it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5, "<unk>": 6}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    return kind(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
