"""Answer prompts with vLLM, in an environment of its own: it needs other versions of libraries.

    VLLM_PYTHON vllm_answers.py MODEL CHATS.json ANSWERS.json [--tokenizer DIR] [--adapter DIR]

A chat is an object of `messages` and `tools`. Writes a list with, for each chat, the ids of its
prompt and of its greedy answer.
"""

import argparse
import json


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("chats")
    parser.add_argument("answers")
    parser.add_argument("--tokenizer")
    parser.add_argument("--adapter")
    arguments = parser.parse_args()

    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    with open(arguments.chats, encoding="utf-8") as file:
        chats = json.load(file)
    lora = LoRARequest("tuned", 1, arguments.adapter) if arguments.adapter else None
    llm = LLM(
        arguments.model,
        tokenizer=arguments.tokenizer or arguments.model,
        dtype="float32",  # so that greedy answers can be compared
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        enable_lora=lora is not None,
        max_lora_rank=16,
        enable_prefix_caching=False,
    )
    greedy = SamplingParams(temperature=0, max_tokens=16)
    answers = [
        llm.chat(chat["messages"], greedy, tools=chat["tools"], lora_request=lora)[0]
        for chat in chats
    ]
    with open(arguments.answers, "w", encoding="utf-8") as file:
        written = [
            {"prompt": list(each.prompt_token_ids), "answer": list(each.outputs[0].token_ids)}
            for each in answers
        ]
        json.dump(written, file)


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
