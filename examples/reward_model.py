"""A reward model on ChatGLM3: it learns from pairs of answers to score the better one higher.

TRL's own trainer, our model with one score over its last token. The scores can judge answers, or be
the reward of `examples/grpo.py`.

    pip install trl
    python examples/reward_model.py ./chatglm3-6b pairs.json out/reward

`pairs.json` is a list of {"prompt": ..., "chosen": ..., "rejected": ...}.
"""

import json
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

import glmtune.auto  # noqa: F401  # makes ChatGLM known to transformers


def main(model_path: str, data_path: str, output_dir: str, **settings: object) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_path, num_labels=1, dtype="auto"
    )
    with open(data_path, encoding="utf-8") as file:
        rows = json.load(file)
    pairs = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]
    on_gpu = torch.cuda.is_available()
    options = {
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 8,
        "max_length": 1024,
        "logging_steps": 1,
        "bf16": on_gpu,
        "activation_checkpointing": on_gpu,
        "use_cpu": not on_gpu,
        "report_to": "none",
    }
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(output_dir=output_dir, **{**options, **settings}),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=8,
            lora_alpha=16,
            target_modules=["query_key_value"],
            modules_to_save=["classifier_head"],  # the score itself, which no checkpoint has
        ),
    )
    trainer.train()
    trainer.save_model(output_dir)
    return output_dir


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
