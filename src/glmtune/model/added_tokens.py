"""Add tokens to a tokenizer, on rows of the embedding that no token uses yet.

    tokenizer   343 ids     "<工单>" -> 343, "<结束>" -> 344       each in one piece, wherever it is
    embedding   448 rows    rows 343 and 344 are trained          no matrix changes its size

Published models have such rows: ChatGLM3 226, GLM-4 209, Qwen2.5 271. Where a model has none, its
embedding would have to grow, and its files would no longer be those of the base.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.errors import RecipeError

Pieces = Mapping[int, list[int]]
"""The id of each added token, and the ids that its text had before: where its row starts from."""


def add_tokens(tokenizer: Any, tokens: Sequence[str], num_rows: int) -> Pieces:
    """Add tokens to a tokenizer.

    Args:
        tokenizer: is changed.
        tokens: the texts, in order.
        num_rows: of the embedding.

    Raises:
        RecipeError: a token is known already, or cannot be added, or no row is free for it.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    for token in tokens:
        problem = ""
        if token in known:
            problem = "is a token of this model already. Take it out of the list"
        elif not token.strip() or token != token.strip():
            problem = "is empty, or has white space around it. Write a visible text, such as <x>"
        elif tokens.count(token) > 1:
            problem = "is there twice. Give each token once"
        if problem:
            raise RecipeError(f"model.add_tokens: {token[:60]!r} {problem}.")
    before = {token: _ids(tokenizer, token) for token in tokens}
    free = num_rows - len(tokenizer)
    if len(tokens) > free:
        raise RecipeError(
            f"model.add_tokens has {len(tokens)} tokens, and the embedding has {max(free, 0)} rows "
            f"that no token uses ({num_rows} rows, {len(tokenizer)} tokens). Add at most so many, "
            "or write the new words as texts, which the model can learn as well."
        )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    pieces = {}
    for token in tokens:
        ids = _ids(tokenizer, token)
        if len(ids) != 1 or ids[0] >= num_rows:
            raise RecipeError(
                f"model.add_tokens: the tokenizer ({type(tokenizer).__name__}) does not read "
                f"{token[:60]!r} as one token after it was added. Choose another text, such as "
                f"<{token[:20].strip('<>')}>."
            )
        pieces[ids[0]] = before[token]
    return pieces


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
