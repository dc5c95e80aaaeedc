"""ChatGLM3 trained by GRPO: answers are sampled, and a function of yours says how good each is.

TRL's own trainer, our model: `import glmtune.auto` makes ChatGLM known to transformers, and the
rest is as for any model. Prompts are messages, which the tokenizer's chat template writes as
ChatGLM3 was trained on them.

    pip install trl
    python examples/grpo.py ./chatglm3-6b questions.json out/grpo

`questions.json` is a list of {"question": ..., "answer": ...}. What is written is an adapter of
peft: `glmtune chat ./chatglm3-6b --adapter out/grpo`.
"""

import json
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import glmtune.auto  # noqa: F401  # makes ChatGLM known to transformers


def reward(completions: list, answer: list, **kwargs: object) -> list[float]:
    """Reward the right answer, and a little less so a long one."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        float(right in text) - 0.001 * len(text) for text, right in zip(texts, answer, strict=True)
    ]


def main(model_path: str, data_path: str, output_dir: str, **settings: object) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
    with open(data_path, encoding="utf-8") as file:
        rows = json.load(file)
    prompts = [
        {"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}
        for row in rows
    ]
    on_gpu = torch.cuda.is_available()
    options = {
        "learning_rate": 1e-5,
        "per_device_train_batch_size": 8,
        "num_generations": 8,  # answers to one prompt, which are compared with each other
        "max_completion_length": 256,
        "logging_steps": 1,
        "bf16": on_gpu,
        "activation_checkpointing": on_gpu,
        "use_cpu": not on_gpu,
        "report_to": "none",
    }
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=output_dir, **{**options, **settings}),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules=["query_key_value"]
        ),
    )
    trainer.train()
    trainer.save_model(output_dir)
    return output_dir


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
