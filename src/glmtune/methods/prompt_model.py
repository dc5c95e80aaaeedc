"""peft's model with virtual tokens, extended to packs: they precede every example of a pack.

peft puts virtual tokens before each row of a padded batch. Over a pack they are computed once, as
keys and values of every layer, which all examples attend to (`kernels.packed_attention`).
"""

from typing import Any

import torch
from peft import PeftModelForCausalLM
from torch import Tensor
from transformers import DynamicCache

from glmtune.kernels.packed_attention import NAME


class PromptModel(PeftModelForCausalLM):
    """peft's model, whose virtual tokens precede every example of a pack."""

    def virtual_tokens(self) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """Return keys and values of every layer, (1, kv_heads, n, head_dim), and n."""
        number: int = self.active_peft_config.num_virtual_tokens
        prompt: Any = self.get_prompt(batch_size=1)
        if not isinstance(prompt, DynamicCache):
            prompt = self._compute_cache(prompt)
        return [(layer.keys, layer.values) for layer in prompt.layers], number

    def _compute_cache(self, vectors: Tensor) -> Any:
        """Run the model on the virtual tokens alone, (1, n, hidden), and give its cache."""
        model: Any = self.get_base_model()
        embeddings = model.get_input_embeddings()
        like = embeddings(torch.zeros(1, dtype=torch.long, device=model.device))
        was_training = model.training
        model.eval()  # gradient checkpointing would drop the cache
        try:
            return model.base_model(
                inputs_embeds=vectors.to(like.dtype), use_cache=True
            ).past_key_values
        finally:
            model.train(was_training)

    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Score a pack, or new tokens after a cache; padded batches are left to peft."""
        model: Any = self.get_base_model()
        if kwargs.get("past_key_values") is not None:  # starts with the virtual tokens
            return model(input_ids=input_ids, **kwargs)
        if "cu_seq_lens_q" not in kwargs:
            return super().forward(input_ids, *args, **kwargs)  # type: ignore[no-untyped-call]
        attention = model.config._attn_implementation
        if attention != NAME:
            raise ValueError(
                f"{attention!r} attention does not support virtual tokens. Use {NAME}."
            )
        layers, number = self.virtual_tokens()
        kwargs["position_ids"] = kwargs["position_ids"] + number
        return model(input_ids=input_ids, virtual_tokens=layers, **kwargs)
