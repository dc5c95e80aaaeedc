"""Read a folder with transformers and peft alone, in a process that never imports glmtune.

It is run as a file, `python -P stock_reader.py request.json`, and answers beside the request:

    result.json            ids of the chats by the stock tokenizer
    logits.safetensors     of every position of the given ids
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(request_file: Path) -> None:
    """Answer one request, as `stock.py` writes it."""
    import transformers

    request: dict[str, Any] = json.loads(request_file.read_text(encoding="utf-8"))
    prompts = None
    if request["chats"] is not None:
        prompts = _prompts(request["tokenizer"], request["chats"])
    if request["model"] is not None:
        _score(request, request_file.with_name("logits.safetensors"))
    result = {
        "prompts": prompts,
        "imports_glmtune": "glmtune" in sys.modules,
        "version": transformers.__version__,
    }
    request_file.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


def _prompts(folder: str, chats: list[Any]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    encode = tokenizer.apply_chat_template
    return [
        list(encode(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
        for chat in chats
    ]


def _score(request: dict[str, Any], file: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, request["dtype"])
    model: Any = AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype)
    if request["adapter"] is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request["adapter"])
    model.eval()
    with torch.no_grad():
        logits = {
            str(index): model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
            for index, ids in enumerate(request["ids"])
        }
    save_file({name: each.contiguous() for name, each in logits.items()}, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
