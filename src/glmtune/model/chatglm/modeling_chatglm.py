"""ChatGLM2 and ChatGLM3 in transformers' own conventions, top to bottom.

    input_ids -> embedding -> num_layers x ChatGLMBlock -> RMSNorm -> output_layer -> logits
                              x = x + attention(RMSNorm(x))
                              x = x + mlp(RMSNorm(x))

Names, shapes and roundings are those of the published checkpoints, so their files load as they
are and half precision gives the same bits. What differs from the other decoders here:

- Queries, keys and values come from one projection with a bias. A few key and value heads serve
  all query heads.
- Rotary embeddings rotate adjacent channels, and only in the first half of each head.
- RMSNorm multiplies by its weight before it rounds, not after.
- The position of a token determines its rotation and nothing else. What it attends to is given by
  the causal order and `attention_mask`, so positions may repeat or jump, as in GLM's blank
  infilling.

Attention, masks, caches, checkpointing, generation and the loss are those of transformers. Norm,
rotation and MLP are our own: those of transformers take the same time at a width of 4096 (0.9 to
1.1 times ours, benchmarks/building_blocks.py), and their norm rounds differently.

Source: spec sections 2 to 6; GLM, https://arxiv.org/abs/2103.10360.
"""

# transformers is typed in part, and calling a module gives Any.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return"
# ruff: noqa: RUF012  # lists as class attributes are its convention

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import (
    ALL_ATTENTION_FUNCTIONS,
    PreTrainedModel,
    slice_logits_to_keep,
)
from transformers.utils.generic import (
    can_return_tuple,
    is_flash_attention_requested,
    merge_with_config_defaults,
)
from transformers.utils.output_capturing import capture_outputs

from glmtune.kernels.fused import rms_norm, swiglu
from glmtune.kernels.rotary import Heads, split_and_rotate
from glmtune.kernels.slot_cache import DecodeView
from glmtune.model.chatglm.chat_format import ChatIds
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.reply import process_response

ROTARY_BASE = 10000.0
UNFINISHED_CHARACTER = "\ufffd"  # what an incomplete character decodes to


class ChatGLMRMSNorm(nn.Module):
    """Divide by the root mean square, in float32 up to and including the weight."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize (..., hidden); the result has the shape and dtype of the input."""
        return rms_norm(hidden_states, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def inverse_frequencies(rotated: int, base: float, device: torch.device | None = None) -> Tensor:
    """The angle by which one position rotates each channel pair: float32, (rotated // 2)."""
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    return 1.0 / base**exponents


class ChatGLMRotaryEmbedding(nn.Module):
    """The angle of every channel pair at given positions.

    Every published checkpoint stores the buffer `inv_freq`, at base 10000 for any `rope_ratio`. It
    is kept for the layout of files, and never read: the angles come from `10000 * rope_ratio`, or
    from 10000 and divided positions, in float32, at any position.
    """

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.rotated = config.kv_channels // 2
        self.base = ROTARY_BASE * (1 if config.rope_interpolation else config.rope_ratio)
        self.divisor = config.rope_ratio if config.rope_interpolation else 1
        stored = inverse_frequencies(self.rotated, ROTARY_BASE)
        self.inv_freq = nn.Buffer(stored.to(torch.get_default_dtype()))  # as the weights

    @torch.no_grad()
    def forward(
        self,
        position_ids: Tensor,
        dtype: torch.dtype,
        block_position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute cosine and sine, each (batch, seq, rotated // 2), rounded to `dtype`.

        With block positions they are (batch, seq, rotated): as many pairs again, for the second
        half of the head. A block position of 0 rotates nothing.
        """
        frequencies = inverse_frequencies(self.rotated, self.base, position_ids.device)
        angles = position_ids[..., None].float() / self.divisor * frequencies
        if block_position_ids is not None:
            block_angles = block_position_ids[..., None].float() / self.divisor * frequencies
            angles = torch.cat((angles, block_angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def repeat_kv(x: Tensor, repeats: int) -> Tensor:
    """Copy each head for its query heads: (batch, kv_heads, ...) -> (batch, heads, ...)."""
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend in plain steps, and also give the attention weights.

    Args:
        module: the attention layer.
        query: (batch, heads, seq, head_dim).
        key: (batch, kv_heads, past + seq, head_dim).
        value: as `key`.
        attention_mask: (batch, 1, seq, past + seq), added to the scores, or boolean with True
            for what may be attended to. None masks nothing.
        scaling: multiplies the scores.
        dropout: probability of dropping an attention weight in training.
        **kwargs: not used here.

    Returns:
        Output (batch, seq, heads, head_dim) and weights (batch, heads, seq, past + seq).
    """
    queries_per_key: Any = module.num_key_value_groups
    key, value = repeat_kv(key, queries_per_key), repeat_kv(value, queries_per_key)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ChatGLMAttention(nn.Module):
    """Causal attention whose few key and value heads each serve a run of query heads."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.kv_channels
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.heads = Heads(self.num_heads, self.num_key_value_heads, config.multi_query_attention)
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.query_key_value = nn.Linear(
            config.hidden_size,
            (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim,
            bias=config.add_qkv_bias or config.add_bias_linear,
        )
        self.dense = nn.Linear(
            self.num_heads * self.head_dim, config.hidden_size, bias=config.add_bias_linear
        )

    def _decodes_fused(self, past_key_values: Any) -> TypeGuard[DecodeView]:
        """Whether kernels of a GPU rotate, store and attend in a captured decode step."""
        return (
            isinstance(past_key_values, DecodeView)
            and self.config.multi_query_attention
            and past_key_values.has_kernels
        )

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within (batch, seq, hidden) and the cache, which holds rotated keys.

        Returns:
            Output (batch, seq, hidden), and the attention weights from the eager implementation.
        """
        fused = self.query_key_value(hidden_states)
        if self._decodes_fused(past_key_values):
            attended = past_key_values.attend_fused(
                fused, *position_embeddings, self.scaling, self.layer_idx
            )
            return self.dense(attended), None
        query, key, value = split_and_rotate(fused, *position_embeddings, self.heads)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.dense(output.flatten(2)), weights


class ChatGLMMLP(nn.Module):
    """SwiGLU: the first half of the fused up projection gates the second."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        hidden, ffn, bias = config.hidden_size, config.ffn_hidden_size, config.add_bias_linear
        self.dense_h_to_4h = nn.Linear(hidden, 2 * ffn, bias=bias)
        self.dense_4h_to_h = nn.Linear(ffn, hidden, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (batch, seq, hidden) to the same shape."""
        return self.dense_4h_to_h(swiglu(self.dense_h_to_4h(hidden_states)))


class ChatGLMBlock(GradientCheckpointingLayer):
    """One decoder layer: attention, then MLP, each on a normalized copy and added back."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_dropout = config.hidden_dropout
        self.input_layernorm = ChatGLMRMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = ChatGLMRMSNorm(
            config.hidden_size, eps=config.layernorm_epsilon
        )
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Tensor:
        """Map (batch, seq, hidden) to the same shape, or only the positions to keep."""
        attended, _ = self.self_attention(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(hidden_states + self.dropout(attended), keep)
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.dropout(transformed)

    def dropout(self, x: Tensor) -> Tensor:
        """Drop channels in training."""
        return F.dropout(x, p=self.hidden_dropout, training=self.training)


class ChatGLMEmbedding(nn.Module):
    """Token ids to vectors; no scale, no norm and no position."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.word_embeddings: nn.Module = nn.Embedding(config.padded_vocab_size, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up (batch, seq) as (batch, seq, hidden)."""
        return self.word_embeddings(input_ids)


class ChatGLMEncoder(nn.Module):
    """The blocks and the final norm; the original calls its decoder an encoder."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ChatGLMBlock(config, layer_idx) for layer_idx in range(config.num_layers)
        )
        self.final_layernorm = ChatGLMRMSNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, hidden_states: Tensor, keep: int | Tensor = 0, **kwargs: Any) -> Tensor:
        """Map (batch, seq, hidden) to the same shape, or only the positions to keep.

        `kwargs` go to every block. After the last attention, positions are independent, so the
        rest of the last block is computed only for those kept.
        """
        *others, last = self.layers
        for layer in others:
            hidden_states = layer(hidden_states, **kwargs)
        return self.final_layernorm(last(hidden_states, keep=keep, **kwargs))


class ChatGLMPrefixEncoder(nn.Module):
    """P-Tuning v2: keys and values in front of the cache of every layer.

    The keys are not rotated.
    Source: https://arxiv.org/abs/2110.07602.
    """

    def __init__(self, config: ChatGLMConfig, length: int) -> None:
        super().__init__()
        self.length = length
        self.layout = (config.num_layers, 2, config.num_key_value_heads, config.kv_channels)
        width = 2 * config.num_layers * config.num_key_value_heads * config.kv_channels
        self.embedding = nn.Embedding(length, width)
        self.dropout = nn.Dropout(0.1)
        if config.prefix_projection:
            self.trans: nn.Module = nn.Sequential(
                nn.Linear(width, config.hidden_size),
                nn.Tanh(),
                nn.Linear(config.hidden_size, width),
            )
        else:
            self.trans = nn.Identity()

    def forward(self, batch: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Compute for each layer a key and a value of (batch, kv_heads, length, head_dim)."""
        slots = torch.arange(self.length, device=self.embedding.weight.device)
        prefix = self.trans(self.embedding(slots)).to(dtype)
        prefix = self.dropout(prefix.unflatten(-1, self.layout))
        layers = prefix.permute(1, 2, 3, 0, 4)  # (layers, 2, kv_heads, length, head_dim)
        layers = layers.unsqueeze(2).expand(-1, -1, batch, -1, -1, -1)
        return [(key, value) for key, value in layers]


class ChatGLMPreTrainedModel(PreTrainedModel):
    """The base class of the models below: loading, saving and initialization."""

    config: ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_missing = [r"rotary_pos_emb\.inv_freq"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": ChatGLMBlock,
        "attentions": ChatGLMAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize matrices from normal(0, initializer_range), norms to 1 and biases to 0."""
        super()._init_weights(module)
        if isinstance(module, ChatGLMRotaryEmbedding):
            init.copy_(module.inv_freq, inverse_frequencies(module.rotated, ROTARY_BASE))


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The decoder, up to the final norm.

    The output layer is a part of it by name only (`transformer.output_layer` in every
    checkpoint); `ChatGLMForConditionalGeneration` applies it.
    """

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.embedding = ChatGLMEmbedding(config)
        self.rotary_pos_emb = ChatGLMRotaryEmbedding(config)
        self.encoder = ChatGLMEncoder(config)
        self.output_layer: nn.Module = nn.Linear(
            config.hidden_size, config.padded_vocab_size, bias=False
        )
        self.prefix_encoder = (
            ChatGLMPrefixEncoder(config, config.pre_seq_len) if config.pre_seq_len else None
        )
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embedding."""
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.embedding.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        block_position_ids: Tensor | None = None,
        keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: (batch, seq); either these or `inputs_embeds`.
            attention_mask: (batch, past + seq), 1 for a token and 0 for padding, on either side;
                or (batch, 1, seq, past + seq), boolean with True for what may be attended to, or
                added to the scores. It does not count the P-Tuning v2 prefix, but may.
            position_ids: (batch, seq). Without them real tokens count from 0, padding apart.
            past_key_values: earlier tokens; extended in place.
            inputs_embeds: (batch, seq, hidden).
            use_cache: whether to return a cache.
            block_position_ids: (batch, seq), GLM's second position, which rotates the second half
                of each head as in ChatGLM-6B. None is 0 everywhere: ChatGLM2 and 3.
            keep: how many last positions to return (0 is all), or which, as `logits_to_keep`.
            **kwargs: reach the attention function of every layer. `cu_seq_lens_q` holds
                the boundaries of the examples of a pack, each of which attends to the P-Tuning v2
                prefix, as `virtual_tokens`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; a P-Tuning v2 prefix
                with gradient checkpointing of anything but packs, or with flash attention of
                packs.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embedding(input_ids)
        if self.prefix_encoder is not None and "cu_seq_lens_q" in kwargs:
            kwargs["virtual_tokens"] = self.prefix_before_examples(inputs_embeds.dtype)
        elif past_key_values is None and (use_cache or self.prefix_encoder is not None):
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and self.prefix_encoder is not None:
            attention_mask = self.add_prefix(past_key_values, attention_mask, inputs_embeds)
        if position_ids is None:
            position_ids = self.count_positions(past_key_values, attention_mask, inputs_embeds)
        hidden_states = self.encoder(
            inputs_embeds,
            position_embeddings=self.rotary_pos_emb(
                position_ids, inputs_embeds.dtype, block_position_ids
            ),
            attention_mask=self.make_mask(past_key_values, attention_mask, inputs_embeds),
            past_key_values=past_key_values,
            keep=keep,
            **kwargs,
        )
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
        )

    def count_positions(
        self, past_key_values: Cache | None, attention_mask: Tensor | None, inputs_embeds: Tensor
    ) -> Tensor:
        """Number the real tokens from 0, after those in the cache: (1 or batch, seq).

        The P-Tuning v2 prefix is in the cache and in the mask, and takes no position.
        """
        seq = inputs_embeds.shape[1]
        prefix = self.config.pre_seq_len or 0
        if attention_mask is not None and attention_mask.ndim == 2:
            counted = attention_mask.long().cumsum(-1) - 1 - prefix
            return counted[:, -seq:].clamp(min=0)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(seq, device=inputs_embeds.device) + (past - prefix)
        return positions.unsqueeze(0)

    def make_mask(
        self, past_key_values: Cache | None, attention_mask: Tensor | None, inputs_embeds: Tensor
    ) -> Any:
        """Make the causal mask in the form that the attention implementation expects.

        Positions are not passed, since transformers would take a jump in them for the start of
        another text. In an explicit mask without a cache, padded queries attend to everything,
        as in the original: no token reads their output, and only a label directly after
        padding depends on it.
        """
        mask: Any = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        is_explicit = isinstance(mask, Tensor) and mask.ndim == 4
        if not is_explicit or attention_mask is None or attention_mask.ndim != 2:
            return mask
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            return mask
        is_padding = (attention_mask == 0)[:, None, :, None]  # (batch, 1, seq, 1)
        if mask.dtype == torch.bool:
            return mask | is_padding
        return mask.masked_fill(is_padding, 0.0)

    def add_prefix(
        self, past_key_values: Cache, attention_mask: Tensor | None, inputs_embeds: Tensor
    ) -> Tensor | None:
        """Insert the P-Tuning v2 prefix into an empty cache, and its ones before a 2-D mask."""
        if self.gradient_checkpointing and self.training:
            raise ValueError(
                "gradient checkpointing drops the cache, and with it the P-Tuning v2 prefix. "
                "Give packs, or train the prefix without gradient checkpointing."
            )
        batch, seq = inputs_embeds.shape[:2]
        if past_key_values.get_seq_length() == 0:
            self.insert_prefix(past_key_values, batch)
        if attention_mask is None or attention_mask.ndim != 2:
            return attention_mask
        missing = int(past_key_values.get_seq_length()) + seq - attention_mask.shape[1]
        return F.pad(attention_mask, (missing, 0), value=1)

    def prefix_before_examples(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Compute the P-Tuning v2 prefix for attention over the examples of a pack."""
        if is_flash_attention_requested(self.config):
            raise ValueError(
                "flash attention over packs does not support the P-Tuning v2 prefix. Use packed."
            )
        assert self.prefix_encoder is not None
        prefix: list[tuple[Tensor, Tensor]] = self.prefix_encoder(1, dtype)
        return prefix

    def add_prefix_encoder(self, length: int, projection: bool) -> None:
        """Add a newly initialized P-Tuning v2 prefix, in float32, on the device of the model."""
        self.config.pre_seq_len, self.config.prefix_projection = length, projection
        encoder = ChatGLMPrefixEncoder(self.config, length)
        for module in encoder.modules():
            self._init_weights(module)
        self.prefix_encoder = encoder.to(self.device, torch.float32)

    def insert_prefix(self, past_key_values: Cache, batch: int) -> None:
        """Insert the P-Tuning v2 prefix into an empty cache, if the model has one."""
        if self.prefix_encoder is None:
            return
        if past_key_values.is_compileable:
            raise ValueError(
                "a static cache has no room for the P-Tuning v2 prefix. Use a DynamicCache."
            )
        for layer_idx, (key, value) in enumerate(self.prefix_encoder(batch, self.dtype)):
            past_key_values.update(key, value, layer_idx)


class FiniteScores(LogitsProcessor):
    """Stop a generation whose scores are not finite, instead of sampling noise from them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (batch, vocab) unchanged.

        Raises:
            FloatingPointError: a row holds NaN or +inf, or nothing but -inf.
        """
        if not torch.isfinite(scores.logsumexp(dim=-1)).all():
            raise FloatingPointError(
                f"the scores of token {input_ids.shape[1]} are not finite, so there is nothing to "
                "choose from. float16 overflows where bfloat16 and float32 do not: load the model "
                "with dtype=torch.bfloat16. If it happens there too, the weights are damaged."
            )
        return scores


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM with its output layer: loss, `generate`, `chat` and `stream_chat`."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace it."""
        self.transformer.output_layer = new_embeddings

    def virtual_tokens(self) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """Compute the virtual tokens in front of every text, and how many positions they take.

        They are keys and values of (1, kv_heads, length, head_dim) for each layer: the P-Tuning v2
        prefix, which takes no position. The list is empty for a model without one.
        """
        encoder = self.transformer.prefix_encoder
        return ([] if encoder is None else encoder(1, self.dtype)), 0

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        score: Callable[[Tensor, nn.Module], Tensor] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Score the next token.

        Args:
            input_ids: (batch, seq); either these or `inputs_embeds`.
            attention_mask: see `ChatGLMModel.forward`.
            position_ids: (batch, seq).
            past_key_values: earlier tokens; extended in place.
            inputs_embeds: (batch, seq, hidden).
            labels: (batch, seq), not shifted: the id to learn, or -100.
            use_cache: whether to return a cache.
            logits_to_keep: how many last positions to score (0 is all), or which.
            score: computes the loss from the hidden states at those positions and the output layer,
                instead of `labels`; then the logits need not all exist at the same time.
            **kwargs: `block_position_ids` go to `ChatGLMModel.forward`; `num_items_in_batch`
                divides the summed loss in place of the number of labels; the rest reaches the
                attention functions.

        Returns:
            `logits` (batch, seq, vocab) in the model's dtype, and with labels a float32 `loss`
            in nats per token. With `score` there are no logits, and the loss is what it returns.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            keep=0 if score is None else logits_to_keep,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if score is not None:
            return CausalLMOutputWithPast(loss=score(hidden_states, self.transformer.output_layer))
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        # For a strided slice, even of one row, torch would copy a half-precision weight per row.
        flat = hidden_states.flatten(0, -2)  # (positions, hidden)
        logits = self.transformer.output_layer(flat).unflatten(0, hidden_states.shape[:-1])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.padded_vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.inference_mode()
    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Mapping[str, Any]] | None = None,
        role: str = "user",
        max_length: int = 8192,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> tuple[str | dict[str, Any], list[dict[str, Any]]]:
        """Answer one message.

        Args:
            tokenizer: a `ChatGLMTokenizer`.
            query: the message.
            history: the messages before it, as `{"role", "content"}` with optional
                `"metadata"` and `"tools"`. It is not changed.
            role: of the message: "user", or "observation" for the result of a tool.
            max_length: the most tokens of prompt and answer together.
            num_beams: 1 disables beam search.
            do_sample: whether to sample from the scores, or to take the best.
            top_p: sample only from the most likely tokens with this total probability.
            temperature: divides the scores before sampling.
            logits_processor: further changes to the scores.
            **kwargs: as for `generate`. `max_new_tokens` replaces `max_length`.

        Returns:
            The answer and the history with the message and the answer appended. The answer is
            text, or a dictionary for a tool call; see `process_response`.

        Raises:
            FloatingPointError: the scores of the model are not finite.
        """
        messages = [*(history or ()), {"role": role, "content": query}]
        inputs = tokenizer.build_chat_input(query, history=history, role=role).to(self.device)
        stop_ids = ChatIds.of(tokenizer).stop
        generate: Callable[..., Tensor] = self.generate  # type: ignore[misc, assignment]
        sequences = generate(
            **inputs,
            **_sampling(do_sample, top_p, temperature),
            **({} if "max_new_tokens" in kwargs else {"max_length": max_length}),
            num_beams=num_beams,
            eos_token_id=stop_ids,
            logits_processor=LogitsProcessorList([*(logits_processor or ()), FiniteScores()]),
            **kwargs,
        )
        reply = sequences[0, inputs["input_ids"].shape[1] :].tolist()
        if reply and reply[-1] in stop_ids:
            reply.pop()
        return read_reply(tokenizer.decode(reply), messages)

    @torch.inference_mode()
    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Mapping[str, Any]] | None = None,
        role: str = "user",
        past_key_values: Cache | None = None,
        max_length: int = 8192,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: LogitsProcessorList | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer one message, yielding the answer so far after every token.

        A step that ends inside a character is held back. The last step is the complete answer.
        The arguments are those of `chat`, without beams, and two more: with `past_key_values`,
        the cache of the previous turn, only the new message is encoded, after the cached tokens;
        `return_past_key_values` also yields the cache.

        Yields:
            (answer, history), or (answer, history, past_key_values).

        Raises:
            FloatingPointError: the scores of the model are not finite.
        """
        messages = [*(history or ()), {"role": role, "content": query}]
        if past_key_values is None:
            prompt = tokenizer.build_chat_input(query, history=history, role=role)
            past_key_values = DynamicCache(config=self.config)
            self.transformer.insert_prefix(past_key_values, batch=1)
        else:
            prompt = tokenizer.build_chat_input(query, history=[], role=role)
        ids = prompt["input_ids"].to(self.device)
        if "max_new_tokens" in kwargs:
            past_and_prompt = past_key_values.get_seq_length() + ids.shape[1]
            max_length = past_and_prompt + kwargs.pop("max_new_tokens")
        rest = (past_key_values,) if return_past_key_values else ()
        reply: list[int] = []
        text = ""
        for token in self._stream_ids(
            ids,
            past_key_values,
            max_length,
            **_sampling(do_sample, top_p, temperature),
            eos_token_id=ChatIds.of(tokenizer).stop,
            logits_processor=LogitsProcessorList([*(logits_processor or ()), FiniteScores()]),
            **kwargs,
        ):
            reply.append(token)
            text = tokenizer.decode(reply)
            if text and not text.endswith(UNFINISHED_CHARACTER):
                yield (*read_reply(text, messages), *rest)
        if not text or text.endswith(UNFINISHED_CHARACTER):
            yield (*read_reply(text, messages), *rest)

    def process_response(
        self, output: str, history: Sequence[Mapping[str, Any]]
    ) -> tuple[str | dict[str, Any], list[dict[str, Any]]]:
        """Read the text of a reply; see `glmtune.model.chatglm.reply.process_response`."""
        return process_response(output, history)

    def _stream_ids(
        self, ids: Tensor, past_key_values: Cache, max_length: int, **settings: Any
    ) -> Iterator[int]:
        """Generate after `ids` (1, seq), which follow the cached tokens, one id at a time."""
        # `generate` drops as many ids from the front as are cached, so pad by that many.
        fillers = ids.new_zeros(1, past_key_values.get_seq_length())
        ids = torch.cat((fillers, ids), dim=1)
        prefix = self.config.pre_seq_len or 0
        generate: Callable[..., Tensor] = self.generate  # type: ignore[misc, assignment]
        while ids.shape[1] < max_length:
            positions = torch.arange(ids.shape[1], device=ids.device) - prefix
            ids = generate(
                ids,
                attention_mask=torch.ones_like(ids),
                position_ids=positions.unsqueeze(0),
                past_key_values=past_key_values,
                max_new_tokens=1,
                **settings,
            )
            token = int(ids[0, -1])
            if token in settings["eos_token_id"]:
                return
            yield token


def read_reply(
    text: str, history: Sequence[Mapping[str, Any]]
) -> tuple[str | dict[str, Any], list[dict[str, Any]]]:
    """Read a reply so that its history encodes to the ids that the model wrote.

    A space in front of a piece of text is the mark of its first token, which encoding adds again.
    Decoding drops it only at the very beginning; at the start of later messages and of a tool
    call it remains. The original keeps those, so its next prompt has spaces never written.
    """
    content, extended = process_response(text, history)
    for index, message in enumerate(extended[len(history) :]):
        if message["metadata"].strip():
            message["content"] = message["content"].removeprefix(" ")
        if index > 0:
            message["metadata"] = message["metadata"].removeprefix(" ")
    return content, extended


def _sampling(do_sample: bool, top_p: float, temperature: float) -> dict[str, Any]:
    """Return the sampling settings of `generate`, only if it samples."""
    if not do_sample:
        return {"do_sample": False}
    return {"do_sample": True, "top_p": top_p, "temperature": temperature}


class ChatGLMForSequenceClassification(ChatGLMPreTrainedModel):
    """ChatGLM with a linear layer over the last token of each text."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 2  # the default of transformers
        self.transformer = ChatGLMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.classifier_head = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Score the labels: `logits` (batch, num_labels), and a loss with `labels` (batch).

        The last token is the last one that `attention_mask` (batch, seq) marks as real, so padding
        may be on either side; the original needs it on the left. The other arguments are
        those of `ChatGLMModel.forward`.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        batch, seq = hidden_states.shape[:2]
        last = torch.full((batch,), seq - 1, device=hidden_states.device)
        if attention_mask is not None and attention_mask.ndim == 2:
            last = last - attention_mask[:, -seq:].flip(1).argmax(dim=1)
        chosen = hidden_states[torch.arange(batch, device=last.device), last]  # (batch, hidden)
        logits = self.classifier_head(self.dropout(chosen))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "ChatGLMForConditionalGeneration",
    "ChatGLMForSequenceClassification",
    "ChatGLMModel",
    "ChatGLMPreTrainedModel",
]
