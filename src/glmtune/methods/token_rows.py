"""Train single rows of the embedding and of the output layer, by peft's `trainable_token_indices`.

peft keeps new values for these rows beside the frozen matrix, saves them with the adapter, and
merges them into it. A model with tied weights has one matrix for both.

peft computes with the matrix itself, not by the layer. So where a CPU computes in float32 with
half-precision weights (`glmtune.kernels.half_precision`), these two matrices become float32.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.kernels.half_precision import WideEmbedding, WideLinear
from glmtune.model.added_tokens import Pieces


def named(model: Any, token_ids: Sequence[int]) -> dict[str, list[int]]:
    """Return the ids whose rows are trained, by the last name of the module; {} for none.

    Args:
        model: the base.
        token_ids: of the added tokens.
    """
    if not token_ids:
        return {}
    make_plain(model)
    modules = [model.get_input_embeddings()]
    if not getattr(model.config, "tie_word_embeddings", False):
        modules.append(model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(each)].rpartition(".")[2]: list(token_ids) for each in modules}


def make_plain(model: Any) -> None:
    """Replace an embedding and an output layer that widen their weights by float32 ones.

    Args:
        model: the base; its activations are float32 already where there is such a layer.
    """
    wide, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(wide, WideEmbedding):
        weight = nn.Parameter(wide.weight.data.float(), requires_grad=False)
        plain = nn.Embedding(
            wide.num_embeddings, wide.embedding_dim, wide.padding_idx, _weight=weight, _freeze=True
        )
        model.set_input_embeddings(plain.train(wide.training))
    if isinstance(head, WideLinear):
        is_tied = head.weight is wide.weight
        layer = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
        layer.weight = (
            model.get_input_embeddings().weight
            if is_tied
            else nn.Parameter(head.weight.data.float(), requires_grad=False)
        )
        layer.bias = head.bias
        model.set_output_embeddings(layer.train(head.training))


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
