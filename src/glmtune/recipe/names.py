"""Names of keys that people bring from elsewhere -> ours.

`RENAMED` are names of transformers and peft that mean exactly the same: they are accepted with
one warning. `HINTS` are names of other tools, and words that people try; what they mean there may
differ a little (a batch size per step or per device), so they are refused with our name.
"""

import difflib
from collections.abc import Mapping, Sequence

# Old or other names -> (section, our name).
RENAMED: Mapping[str, tuple[str, str]] = {
    "model_name_or_path": ("model", "name_or_path"),
    "adapter_name_or_path": ("adapter", "name_or_path"),
    "torch_dtype": ("model", "dtype"),
    "evaluation_strategy": ("training", "eval_strategy"),
    "warmup_ratio": ("training", "warmup_steps"),
    "no_cuda": ("training", "use_cpu"),
    "output_dir": ("output", "dir"),
    "overwrite_output_dir": ("output", "overwrite"),
}

_OURS: Mapping[str, str] = {  # our key: names by which people look for it
    "model.name_or_path": (
        "model model_name model_path model_id model_dir base_model base_model_name_or_path "
        "base_model_path model_id_or_path pretrained_model pretrained_model_name_or_path "
        "pretrained_model_path checkpoint ckpt"
    ),
    "model.dtype": "precision weights_dtype compute_dtype",
    "model.attn_implementation": (
        "attn attn_impl attention flash_attn flash_attention use_flash_attn"
    ),
    "data.train": (
        "data dataset datasets data_path data_file data_files dataset_path dataset_name train "
        "train_file train_files train_data train_path train_dataset training_data training_file"
    ),
    "data.eval": (
        "val val_file val_data val_dataset val_path valid_file validation_file validation_data "
        "dev_file eval_file eval_data eval_dataset eval_path test_file test_data"
    ),
    "data.eval_fraction": (
        "val_size val_split val_ratio val_set_size eval_size eval_ratio eval_split test_size "
        "test_split validation_split split_dataset_ratio"
    ),
    "data.max_length": (
        "cutoff_len max_seq_length max_seq_len max_len max_source_length max_target_length "
        "max_sequence_length seq_length seq_len sequence_len sequence_length block_size "
        "context_length model_max_length max_tokens cutoff length"
    ),
    "data.layout": "template prompt_template chat_template",
    "adapter.method": (
        "finetuning_type train_type tuner_type sft_type peft_type peft tuner lora_type type"
    ),
    "adapter.r": "lora_rank rank lora_r lora_dim lora_attn_dim",
    "adapter.lora_alpha": "alpha scaling lora_scale lora_scaling",
    "adapter.lora_dropout": "dropout",
    "adapter.target_modules": (
        "lora_target lora_targets lora_target_modules lora_modules target targets modules "
        "lora_target_linear"
    ),
    "adapter.modules_to_save": "additional_target lora_modules_to_save",
    "adapter.quantization_bit": "quant_bits quantization_bits bits",
    "adapter.pre_seq_len": "prefix_len prefix_length",
    "adapter.loraplus_lr_ratio": "lora_plus_ratio lorap_lr_ratio",
    "training.learning_rate": "lr base_lr max_lr peak_lr learningrate init_lr",
    "training.num_train_epochs": (
        "epochs epoch num_epochs n_epochs train_epochs max_epochs num_epoch total_epochs"
    ),
    "training.max_steps": (
        "steps num_steps train_steps num_train_steps max_train_steps total_steps iters "
        "train_iters num_iters max_iters training_steps"
    ),
    "training.per_device_train_batch_size": (
        "batch_size batch batchsize bs train_batch_size micro_batch_size mini_batch_size "
        "per_device_batch_size per_gpu_train_batch_size train_micro_batch_size_per_gpu"
    ),
    "training.gradient_accumulation_steps": (
        "grad_accum grad_accumulation grad_acc gradient_accumulation accumulation_steps "
        "grad_accum_steps grad_accumulation_steps accumulate_grad_batches accumulation"
    ),
    "training.lr_scheduler_type": "scheduler lr_scheduler schedule scheduler_type lr_schedule",
    "training.warmup_steps": "warmup warm_up num_warmup_steps warmup_proportion warmup_fraction",
    "training.weight_decay": "wd decay",
    "training.adam_beta1": "beta1 adam_b1",
    "training.adam_beta2": "beta2 adam_b2",
    "training.adam_epsilon": "eps epsilon adam_eps optim_eps",
    "training.optim": "optimizer optimiser",
    "training.max_grad_norm": (
        "clip grad_clip gradient_clipping clip_grad clip_grad_norm max_norm grad_norm "
        "gradient_clip_val gradient_clip"
    ),
    "training.label_smoothing_factor": "label_smoothing",
    "training.neftune_noise_alpha": "neftune neftune_alpha noise_alpha",
    "training.gradient_checkpointing": (
        "grad_checkpointing checkpointing activation_checkpointing grad_checkpoint"
    ),
    "training.sharding": "fsdp",
    "training.deepspeed": "zero ds_config deepspeed_config",
    "training.seed": "random_seed random_state",
    "training.logging_steps": "log_steps log_interval log_every logging_interval",
    "training.eval_steps": "eval_interval evals_per_epoch evaluation_steps eval_every",
    "training.eval_metrics": "metrics eval_metric compute_metrics",
    "training.eval_metric_rows": "eval_rows eval_samples max_eval_samples",
    "training.metric_for_best_model": "best_metric best_model_metric",
    "training.save_steps": "save_interval checkpoint_steps saves_per_epoch save_every",
    "training.save_total_limit": "save_limit keep_checkpoints max_checkpoints",
    "training.load_best_model_at_end": "load_best load_best_model",
    "training.early_stopping_patience": "early_stopping early_stopping_steps patience early_stop",
    "training.use_cpu": "cpu device",
    "preference.stage": "task rlhf_type rl",
    "preference.loss": "pref_loss loss_type dpo_loss",
    "preference.beta": "pref_beta dpo_beta kto_beta rl_beta",
    "preference.desirable_weight": "kto_chosen_weight kto_desirable_weight chosen_weight",
    "preference.undesirable_weight": "kto_rejected_weight kto_undesirable_weight rejected_weight",
    "output.dir": (
        "output out output_path output_folder out_dir save_dir save_path save_folder "
        "logging_dir result_dir"
    ),
    "output.report_to": "tracker trackers logger wandb report log_with use_wandb",
    "output.run_name": "wandb_name experiment_name exp_name",
}  # fmt: skip
HINTS: Mapping[str, str] = {name: ours for ours, names in _OURS.items() for name in names.split()}

_OTHERWISE: Mapping[str, str] = {  # words that are no single key here
    "load_in_4bit": "adapter.method=qlora, with adapter.quantization_bit=4",
    "load_in_8bit": "adapter.method=qlora, with adapter.quantization_bit=8",
    "quantization": "adapter.method=qlora, with adapter.quantization_bit=4",
    "quantize": "adapter.method=qlora, with adapter.quantization_bit=4",
    "mixed_precision": "training.bf16=true or training.fp16=true",
    "amp": "training.bf16=true or training.fp16=true",
    "resume": "the option --resume",
    "resume_from_checkpoint": "the option --resume, which finds the newest checkpoint",
    "nproc_per_node": "the option --nproc",
    "num_processes": "the option --nproc",
    "num_gpus": "the option --nproc",
    "recipe": "the recipe, the first argument of the command",
}


def hint(name: str, known: Sequence[str]) -> str | None:
    """Say how a name that is no key is called here.

    Args:
        name: as it was given, with or without its section.
        known: the keys of the recipe at hand, with their sections.

    Returns:
        `it is called training.learning_rate here`, or None for a name that nobody brings.
    """
    word = name.rpartition(".")[2].replace("-", "_").lower()
    if word in _OTHERWISE:
        return f"it is {_OTHERWISE[word]}"
    ours = HINTS.get(word)
    return f"it is called {ours} here" if ours in known else None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Name the nearest known word, or all of them."""
    nearest = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.6)
    if nearest:
        return f" Did you mean {nearest[0]!r}?"
    return f" Known are: {', '.join(known)}." if len(known) < 60 else " docs/recipes.md lists all."
