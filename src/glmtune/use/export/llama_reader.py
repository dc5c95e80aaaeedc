"""Answer with llama.cpp's own server, in a process of its own: an error in C++ may end it.

It is run as a file, `python -P llama_reader.py request.json`, and answers beside the request:

    result.json    ids of the chats, and greedy ids after the given prompts
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any


def main(request_file: Path) -> None:
    """Answer one request, as `llama_cpp.py` writes it."""
    import xllamacpp as llama

    request: dict[str, Any] = json.loads(request_file.read_text(encoding="utf-8"))
    longest = max((len(ids) + count for ids, count in request["prompts"]), default=0)
    params = llama.CommonParams()
    params.model.path = request["model"]
    if request["lora"] is not None:
        params.lora_adapters = [llama.CommonAdapterLoraInfo(request["lora"], 1.0)]
    params.n_ctx, params.n_parallel = max(512, longest + 16), 1
    # By default llama.cpp keeps keys and values in float16.
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup, params.fit_params, params.use_jinja = False, False, True
    params.hostnames, params.port = ["127.0.0.1"], 0
    server = llama.Server(params)
    address = server.listening_address
    result = {
        "chats": [_chat_ids(address, chat) for chat in request["chats"]],
        "answers": [_greedy(address, ids, count) for ids, count in request["prompts"]],
    }
    request_file.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


def _chat_ids(address: str, chat: list[Any]) -> list[int]:
    prompt = _post(address, "/apply-template", messages=chat)["prompt"]
    asked = {"content": prompt, "add_special": False, "parse_special": True}
    ids: list[int] = _post(address, "/tokenize", **asked)["tokens"]
    return ids


def _greedy(address: str, ids: list[int], count: int) -> list[int]:
    if not count:
        return []
    asked = {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": False}
    answer: list[int] = _post(address, "/completion", return_tokens=True, **asked)["tokens"]
    return answer


def _post(address: str, path: str, **body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return json.loads(answer.read())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
