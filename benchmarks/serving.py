"""Serving: many clients at once next to one after the other, and a short request beside long ones.

    python -m benchmarks.serving [--quick]

A server in a process of its own (`glmtune serve`), and clients of OpenAI's API over sockets. Every
client asks its own question and gets 64 tokens. Rates are those that clients see, of whole answers.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from typing import Any

from benchmarks.figures import Figure, run

NUM_CLIENTS = 32
NUM_TOKENS = 64


def start(model: str) -> tuple["subprocess.Popen[str]", str]:
    """Start a server on a free port; return it and its URL."""
    command = [sys.executable, "-m", "glmtune", "--quiet", "serve", model, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.split()[1]


def ask(url: str, text: str, num_tokens: int, stream: bool = False) -> tuple[float, float, int]:
    """Ask a question; return the seconds to the first token and to the last, and the tokens."""
    body: dict[str, Any] = {
        "model": "nano",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": num_tokens,
        "temperature": 1.5,  # answers of a small model that end seldom
        "top_p": 1.0,
        "stream": stream,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    began, first, tokens = time.perf_counter(), 0.0, 0
    with urllib.request.urlopen(request) as response:
        if not stream:
            answer = json.loads(response.read())
            return 0.0, time.perf_counter() - began, answer["usage"]["completion_tokens"]
        for line in response:
            if b'"content":"' in line and b'"content":""' not in line:
                first = first or time.perf_counter() - began
                tokens += 1
    return first, time.perf_counter() - began, tokens


def rate(url: str, questions: list[str], *, together: bool) -> float:
    """Tokens/s of all questions, at once or one after the other."""
    counts: list[int] = []

    def client(text: str) -> None:
        counts.append(ask(url, text, NUM_TOKENS)[2])

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(text,)) for text in questions]
    for thread in threads:
        thread.start()
        if not together:
            thread.join()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def first_token(url: str, num_long: int) -> float:
    """Seconds to the first token of a short request while long answers are generated."""
    long = [
        threading.Thread(target=ask, args=(url, f"讲一个很长的故事 {i}", 400), daemon=True)
        for i in range(num_long)
    ]
    for thread in long:
        thread.start()
    time.sleep(0.5)
    waited = [ask(url, "你好", 4, stream=True)[0] for _ in range(3)]
    for thread in long:
        thread.join()
    return statistics.median(waited)


def measure(quick: bool) -> list[Figure]:
    """Measure a server of nano."""
    process, url = start("nano")
    questions = [f"请介绍一下第 {i} 个问题：北京的历史。" for i in range(NUM_CLIENTS)]
    try:
        ask(url, "你好", 4)
        alone, together = [], []
        for _ in range(1 if quick else 3):
            alone.append(rate(url, questions[: 8 if quick else 16], together=False))
            together.append(rate(url, questions, together=True))
        waited = first_token(url, 8 if quick else 40)
        idle = first_token(url, 0)
    finally:
        process.terminate()
        process.wait()
    one, many = statistics.median(alone), statistics.median(together)
    name = f"{NUM_CLIENTS} clients at once"
    wait = Figure("serving", "first token beside long answers", "s", waited, idle, "with no other")
    return [
        Figure("serving", name, "tokens/s", many, one, "one after the other", goal=3.0),
        replace(wait, less_is_better=True),
    ]


if __name__ == "__main__":
    run(measure, __doc__)
