"""Faults of runs: settings under which something else than the rows is learned, or nothing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunFault:
    """Settings that a recipe accepts, and what must be said of them.

    Attributes:
        overrides: of a healthy recipe.
        words: that a user must see before the first step.
        ending: those that the error at the end must have; "" where the run may end well.
    """

    overrides: tuple[str, ...]
    words: str
    ending: str = ""


ROWS, STEPS = 400, 100  # of the healthy recipe

RUN_FAULTS: dict[str, RunFault] = {
    "a learning rate of 1e-9": RunFault(("learning_rate=1e-9",), "barely learns"),
    "a learning rate of 5e-3, far too high": RunFault(
        ("learning_rate=5e-3",), "diverges or forgets"
    ),
    "full tuning at the learning rate of an adapter": RunFault(
        ("adapter={method: full}", "learning_rate=1e-3"), "diverges or forgets"
    ),
    "weight decay of 100": RunFault(("weight_decay=100",), "pulls what is trained to zero"),
    "weight decay of 5": RunFault(("weight_decay=5",), "pulls what is trained to zero"),
    "dropout of 0.99": RunFault(("adapter.lora_dropout=0.99",), "mostly noise"),
    "dropout of 0.6": RunFault(("adapter.lora_dropout=0.6",), "mostly noise"),
    "label smoothing of 0.9": RunFault(("label_smoothing_factor=0.9",), "whole vocabulary"),
    "noise of 5000 on the embeddings": RunFault(("neftune_noise_alpha=5000",), "in noise"),
    "momentum over a thousand steps": RunFault(("adam_beta1=0.9999",), "0.9 and 0.999 are usual"),
    "no second moment": RunFault(("adam_beta2=0",), "0.9 and 0.999 are usual"),
    "gradients clipped to nothing": RunFault(
        ("max_grad_norm=1e-12",), "adam_epsilon outweighs", "next to nothing was learned"
    ),
    "an epsilon above all gradients": RunFault(
        ("adam_epsilon=1",), "outweighs usual gradients", "next to nothing was learned"
    ),
    "an update scaled to nothing": RunFault(
        ("adapter.lora_alpha=1e-5",), "changes next to nothing", "Set adapter.lora_alpha"
    ),
    "a warm-up longer than the run": RunFault(
        ("warmup_steps=100000",), "not shorter than the run", "next to nothing was learned"
    ),
    "an adapter on one layer": RunFault(
        ("adapter.target_modules=[query_key_value]", "adapter.layers_to_transform=[0]"),
        "layer 0 alone",
    ),
    "more rows held out than learned": RunFault(("data.eval_fraction=0.9",), "holds out more rows"),
    "five hundred epochs": RunFault(("num_train_epochs=500",), "memorize"),
    "three steps in all": RunFault(("max_steps=3",), "only 3 optimizer steps"),
    "one row in a step": RunFault(
        ("per_device_train_batch_size=1", "gradient_accumulation_steps=1"), "mostly noise"
    ),
    "a step of more rows than there are": RunFault(
        ("gradient_accumulation_steps=1000",), "an entire epoch"
    ),
}

# name -> what a recipe refuses, and words of the error
REFUSED: dict[str, tuple[str, str]] = {
    "a learning rate of 0": ("learning_rate=0", "greater than 0"),
    "dropout of everything": ("adapter.lora_dropout=1", "less than 1"),
    "a rank of 0": ("adapter.r=0", "greater than 0"),
    "all rows held out": ("data.eval_fraction=1", "a share less than 1"),
    "a second section of one name": (
        "training={learning_rate: 1e-4, learning_rate: 1e-9}",
        "twice",
    ),
}

HEALTHY_RUNS: dict[str, tuple[str, ...]] = {
    "the defaults": (),
    "all linear layers": ("adapter.target_modules=all-linear",),
    "a small rank": ("adapter.r=2", "adapter.lora_alpha=4"),
    "rank-stabilized": ("adapter.use_rslora=true", "adapter.r=16"),
    "dora": ("adapter.use_dora=true",),
    "pissa": ("adapter.init_lora_weights=pissa",),
    "some dropout": ("adapter.lora_dropout=0.1",),
    "usual decay": ("weight_decay=0.1",),
    "some smoothing": ("label_smoothing_factor=0.1",),
    "some noise": ("neftune_noise_alpha=5",),
    "a cosine and a warm-up": ("lr_scheduler_type=cosine", "warmup_steps=0.05"),
    "ia3": ("adapter={method: ia3}", "learning_rate=1e-2"),
    "prefix tuning": ("adapter={method: prefix_tuning}", "learning_rate=2e-2"),
    "p-tuning v2": ("adapter={method: ptuning_v2}", "learning_rate=2e-2"),
    "vera": ("adapter={method: vera}", "learning_rate=1e-2"),
    "full": ("adapter={method: full}", "learning_rate=1e-5"),
    "freeze": ("adapter={method: freeze, trainable_layers: 1}", "learning_rate=1e-5"),
    "another average": ("average=micro_batches",),
    "no clipping": ("max_grad_norm=null",),
    "held-out rows": ("data.eval_fraction=0.1",),
}
