"""ChatGLM3 fine-tuned the plain way: the well-known tutorial, on today's libraries.

Every line is the tutorial's own style: AutoTokenizer, a `process_func` for `map`, LoRA on
`query_key_value`, transformers' Trainer, `model.chat`. Two things differ: `import glmtune.auto`
replaces `trust_remote_code=True`, and bfloat16 replaces float16, which CPUs compute slowly.

    python examples/tutorial.py ./chatglm3-6b alpaca_zh.json out/tutorial

`glmtune train chatglm3-alpaca-zh-tutorial` does the same with the checks.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

import glmtune.auto  # noqa: F401  # makes ChatGLM known to transformers

MAX_LENGTH = 256


def main(model_path: str, data_path: str, output_dir: str, max_steps: int = -1) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def process_func(example: dict) -> dict:
        instruction = "\n".join([example["instruction"], example["input"]]).strip()
        prompt = tokenizer.build_chat_input(instruction, history=[], role="user")
        response = tokenizer("\n" + example["output"], add_special_tokens=False)
        prompt_ids = prompt["input_ids"][0].tolist()
        answer_ids = [*response["input_ids"], tokenizer.eos_token_id]
        input_ids = prompt_ids + answer_ids
        labels = [-100] * len(prompt_ids) + answer_ids
        return {
            "input_ids": input_ids[:MAX_LENGTH],
            "attention_mask": [1] * len(input_ids[:MAX_LENGTH]),
            "labels": labels[:MAX_LENGTH],
        }

    rows = load_dataset("json", data_files=data_path, split="train")
    tokenized = rows.map(process_func, remove_columns=rows.column_names)

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=["query_key_value"],
        r=8,
        lora_alpha=8,
        lora_dropout=0.0,
    )
    model = get_peft_model(model, config)
    model.print_trainable_parameters()

    args = TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=16,
        logging_steps=10,
        num_train_epochs=1,
        max_steps=max_steps,
        learning_rate=1e-4,
        adam_epsilon=1e-4,
        remove_unused_columns=False,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=tokenized,
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
    )
    trainer.train()
    model.save_pretrained(output_dir)

    model.eval()
    response, _history = model.chat(tokenizer, rows[0]["instruction"], history=[])
    print(response)
    return response


if __name__ == "__main__":
    main(*sys.argv[1:4])
