"""Train single rows of the embedding and of the output layer, by peft's `trainable_token_indices`.

peft keeps new values for these rows beside the frozen matrix, saves them with the adapter, and
merges them into it. A model with tied weights has one matrix for both.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.model.added_tokens import Pieces


def named(model: Any, token_ids: Sequence[int]) -> dict[str, list[int]]:
    """Return the ids whose rows are trained, by the last name of the module; {} for none.

    Args:
        model: the base.
        token_ids: of the added tokens.
    """
    if not token_ids:
        return {}
    modules = [model.get_input_embeddings()]
    if not getattr(model.config, "tie_word_embeddings", False):
        modules.append(model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(each)].rpartition(".")[2]: list(token_ids) for each in modules}


def start(model: Any, tokens: Pieces) -> None:
    """Set the row of each added token to the mean of the rows that its text had before.

    Args:
        model: with the adapter.
        tokens: pieces by the id of the token.
    """
    for _, layer in trained_rows(model) if tokens else ():
        weight: Tensor = layer.get_base_layer().weight
        rows = layer.trainable_tokens_delta["default"]
        with torch.no_grad():
            for row, token_id in enumerate(layer.token_indices["default"]):
                rows[row] = weight[tokens[token_id]].float().mean(dim=0)


def trained_rows(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield peft's layers of trained rows, with the names of the modules that they are in."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    for name, module in model.named_modules():
        if isinstance(module, TrainableTokensLayer) and not module.tied_adapter:
            yield name.removesuffix(".token_adapter"), module
