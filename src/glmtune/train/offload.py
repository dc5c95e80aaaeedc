"""Activations that wait for the backward pass in the memory of the host, for runs on a GPU.

    forward     input of layer 0, 1, 2, ...  ->  pinned memory of the host
    backward    input of layer 2, 1, 0       ->  GPU, and the layer is computed again from it

With gradient checkpointing a GPU keeps the input of each layer, (tokens, hidden); with this it
keeps none of them. Torch copies while the GPU computes (`torch.autograd.graph.save_on_cpu`).
Weights that autograd saves stay where they are: their copies would cost more than all activations.
"""

from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks


class OffloadedActivations(saved_tensors_hooks):
    """A context in which autograd keeps what it saves, except weights, in the host's memory.

    Args:
        model: on its device, as it is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
        self._on_host = save_on_cpu(pin_memory=True)
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() in self._weights:
            return tensor.detach()  # the tensor itself would keep its own graph alive
        return self._on_host.pack_hook(tensor)

    def _unpack(self, packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else self._on_host.unpack_hook(packed)
