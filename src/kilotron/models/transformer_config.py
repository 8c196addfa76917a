"""TransformerConfig: everything that a model's structure depends on, under Megatron's field names where it has one.

Checkpoint readers fill it in; the model modules read it. Knows nothing of file formats and holds no weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from kilotron.errors import CheckpointError
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig

RopeScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
QKNorm = Literal["none", "head", "projection", "l2"]
NormPlacement = Literal["pre", "post", "sandwich", "post_residual"]

CHOICES: dict[str, tuple[str, ...]] = {
    "normalization": ("RMSNorm", "LayerNorm"),
    "norm_placement": ("pre", "post", "sandwich", "post_residual"),
    "qk_layernorm": ("none", "head", "projection", "l2"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu"),
    "position_embedding_type": ("rope", "learned", "none", "learned_in_stack", "relative"),
    "softmax_type": ("vanilla", "off-by-one", "learnable"),
    "moe_router_score_function": ("softmax", "sigmoid"),
}
COUNTS = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "vocab_size", "unpadded_vocab_size", "max_position_embeddings", "num_moe_experts", "moe_router_topk",
    "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_router_num_groups", "moe_router_group_topk",
    "moe_router_scores_per_group",
)  # fmt: skip
POSITIVE_NUMBERS = (
    "layernorm_epsilon", "rotary_base", "rotary_percent", "local_rotary_base", "softmax_scale",
    "attn_logit_softcapping", "final_logit_softcapping", "embedding_multiplier", "activation_clamp",
    "moe_router_topk_scaling_factor",
)  # fmt: skip


def yarn_magnitude(factor: float, multiplier: float) -> float:
    """How yarn lets attention grow with the stretch."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was first trained on."""

    kind: RopeScalingKind
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    """yarn, longrope: multiplies cos and sin; None derives it from `factor`."""
    low_freq_factor: float = 1.0
    """llama3"""
    high_freq_factor: float = 4.0
    """llama3"""
    beta_fast: float = 32.0
    """yarn"""
    beta_slow: float = 1.0
    """yarn"""
    mscale: float | None = None
    """yarn"""
    mscale_all_dim: float | None = None
    """yarn"""
    truncate: bool = True
    """yarn: whether the bounds of the ramp are rounded to whole dimensions."""
    short_factor: tuple[float, ...] = ()
    """longrope: one divisor per frequency, for sequences up to the original length."""
    long_factor: tuple[float, ...] = ()
    """longrope: the same for longer sequences."""

    @property
    def yarn_attention_factor(self) -> float:
        """What yarn multiplies cos and sin by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_magnitude(self.factor, self.mscale) / yarn_magnitude(self.factor, self.mscale_all_dim)
        return yarn_magnitude(self.factor, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): keys, values and mostly queries pass through small latent vectors."""

    q_lora_rank: int | None
    """Size of the queries' latent vector; None: queries are projected directly."""
    kv_lora_rank: int
    """Size of the latent vector that keys and values share."""
    qk_head_dim: int
    """Channels of a query or key that are not rotated."""
    qk_pos_emb_head_dim: int
    """Channels that are rotated; in keys they are the same for all heads."""
    v_head_dim: int
    has_norms: bool = True
    """Whether the latent vectors are normed."""
    norm_epsilon: float | None = None
    """None: these norms use `layernorm_epsilon` like all others."""
    rotary_interleaved: bool = True
    """Whether the stored rotated channels are pairs of neighbours, as Megatron and DeepSeek have them."""

    @property
    def head_size(self) -> int:
        """Channels of a query or key."""
        return self.qk_head_dim + self.qk_pos_emb_head_dim

    @property
    def cached_head_size(self) -> int:
        """Channels of a head in the cache, where keys and values have the same size."""
        return max(self.head_size, self.v_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """The structure of a decoder, and of the encoder in front of it, if any. Impossible combinations raise
    CheckpointError."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    """Key-value heads; always the true number, also for plain multi-head attention."""
    kv_channels: int
    """Size of one head."""
    vocab_size: int
    """Rows of the embedding table, padding included."""
    unpadded_vocab_size: int | None = None
    """Leading rows that are tokens, where the others are known to mean nothing (Megatron); None: all count."""
    max_position_embeddings: int

    normalization: str = "RMSNorm"
    layernorm_epsilon: float = 1e-5
    layernorm_zero_centered_gamma: bool = False
    """Norm weights are stored as w - 1 (Gemma, Nemotron)."""
    norm_placement: NormPlacement = "pre"
    """Before each sub-layer, after it (OLMo-2), both (Gemma-2 and -3), or after its residual is added (BART)."""
    use_parallel_residual: bool = False
    """Attention and MLP both read the layer's input (GPT-NeoX)."""
    qk_layernorm: QKNorm = "none"
    """Norm of query and key: per head (Qwen3), over all heads at once (OLMo-2), or per head without weights (l2)."""
    latent_attention: LatentAttention | None = None
    """With it, `kv_channels` is `cached_head_size` and `num_query_groups` is `num_attention_heads`."""

    add_qkv_bias: bool = False
    add_proj_bias: bool = False
    """Bias of the attention's output projection."""
    add_mlp_bias: bool = False
    gated_linear_unit: bool = True
    activation: str = "silu"
    """relu2 is the square of relu; quick_gelu is x * sigmoid(1.702 x)."""
    activation_clamp: float | None = None
    """Gated only: the gate is bounded above by it, what it multiplies on both sides (gpt-oss)."""
    glu_linear_offset: float = 0.0
    """Gated only: added to what the gate multiplies (gpt-oss: 1)."""

    position_embedding_type: str = "rope"
    """Encoder-decoder models also have tables in each stack, or relative positions."""
    rotary_base: float = 10000.0
    rotary_percent: float = 1.0
    """Leading share of each head that is rotated."""
    rotary_interleaved: bool = False
    """Whether the stored rotated channels are pairs of neighbours (GPT-J) and not two halves."""
    no_rope_layers: tuple[bool, ...] = ()
    """Whether each layer leaves its queries and keys unrotated; empty when none does."""
    rope_scaling: RopeScaling | None = None
    local_rotary_base: float | None = None
    """Layers with a window use this base and no scaling (Gemma-3); None: they are like the others."""

    softmax_scale: float | None = None
    """Multiplies attention scores; None is kv_channels ** -0.5."""
    scale_attn_by_inverse_layer_idx: bool = False
    """GPT-2 option: scores of layer i are divided by i + 1 as well."""
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    softmax_type: str = "vanilla"
    """off-by-one: 1 more in the denominator of attention; learnable: e to a number of each head's (a sink)."""
    layer_windows: tuple[int | None, ...] = ()
    """Sliding window of each layer, None where a layer sees everything; empty when all do."""
    embedding_multiplier: float = 1.0
    """Gemma: sqrt(hidden_size). Rounded to the model's dtype before use."""
    untie_embeddings_and_output_weights: bool = True

    num_moe_experts: int | None = None
    moe_router_topk: int = 1
    moe_ffn_hidden_size: int | None = None
    norm_topk_prob: bool = True
    """Whether the chosen experts' probabilities are scaled to sum to one."""
    moe_layer_freq: tuple[bool, ...] = ()
    """Whether each layer is a mixture of experts; empty when all are."""
    moe_router_score_function: str = "softmax"
    moe_router_float32: bool = False
    """Whether the router computes in float32 in a model of another dtype."""
    moe_router_topk_scaling_factor: float | None = None
    """Multiplies the chosen experts' weights."""
    moe_router_enable_expert_bias: bool = False
    """A bias for each expert that counts when experts are chosen, and not in their weights."""
    moe_router_num_groups: int | None = None
    """Experts are chosen from the best `moe_router_group_topk` of so many groups of neighbours."""
    moe_router_group_topk: int | None = None
    moe_router_scores_per_group: int = 2
    """A group is judged by the sum of so many of its greatest scores."""
    moe_router_groups_by_logits: bool = False
    """Whether groups are judged by logits, before the softmax."""
    moe_shared_expert_intermediate_size: int | None = None
    """Size of the experts that see every token, all together; None: there are none."""
    moe_shared_expert_gate: bool = False
    """Whether the shared experts' output is multiplied by the sigmoid of a number of the token's own."""
    add_router_bias: bool = False

    encoder_decoder: EncoderDecoderConfig | None = None
    """None for decoder-only models."""

    params_dtype: torch.dtype = torch.float32
    """The checkpoint's own dtype."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        self._check_values()
        self._check_attention()
        self._check_experts()
        for field in ("layer_windows", "no_rope_layers", "moe_layer_freq"):
            if getattr(self, field):
                _check_length(field, getattr(self, field), self.num_layers)
        if any(window is not None and window <= 0 for window in self.layer_windows):
            raise CheckpointError(f"layer_windows = {self.layer_windows}: a window must be positive")
        if self.encoder_decoder is None and (
            self.norm_placement == "post_residual" or self.position_embedding_type in ("learned_in_stack", "relative")
        ):
            raise CheckpointError(
                f"norm_placement = '{self.norm_placement}' with position_embedding_type = "
                f"'{self.position_embedding_type}': a decoder without an encoder has no such form"
            )
        if self.use_parallel_residual and self.norm_placement != "pre":
            raise CheckpointError(f"norm_placement = '{self.norm_placement}' is impossible with use_parallel_residual")

    @property
    def num_tokens(self) -> int:
        """How many columns of the logits are tokens; what lies beyond is never sampled nor scored."""
        return self.vocab_size if self.unpadded_vocab_size is None else self.unpadded_vocab_size

    @property
    def context_length(self) -> int:
        """The longest sequence that the position embedding is made for, scaling included."""
        scaling = self.rope_scaling
        if scaling is None or self.local_rotary_base is not None:
            return self.max_position_embeddings
        if scaling.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * scaling.factor)
        if scaling.kind == "yarn":
            return max(self.max_position_embeddings, int(scaling.original_max_position_embeddings * scaling.factor))
        return self.max_position_embeddings

    @property
    def rotary_channels(self) -> int:
        """How many leading channels of a head are rotated, in the layout of the kernels."""
        if self.latent_attention is not None:
            return self.latent_attention.qk_pos_emb_head_dim
        return int(self.kv_channels * self.rotary_percent)

    @property
    def rotates(self) -> bool:
        """Whether any layer rotates queries and keys; latent attention always does."""
        return self.position_embedding_type == "rope" or self.latent_attention is not None

    @property
    def encoder(self) -> "TransformerConfig":
        """The encoder's structure; only where there is an encoder."""
        own = self.encoder_decoder
        if own is None:
            raise CheckpointError("a decoder-only model has no encoder")
        heads = own.num_encoder_attention_heads
        channels = self.kv_channels * self.num_attention_heads // heads
        return replace(
            self,
            num_layers=own.num_encoder_layers,
            ffn_hidden_size=own.encoder_ffn_hidden_size,
            num_attention_heads=heads,
            num_query_groups=heads,
            kv_channels=channels,
        )

    def stack_of(self, tensor_name: str) -> "TransformerConfig":
        """The structure of the stack, encoder or decoder, that a tensor is of."""
        return self.encoder if self.encoder_decoder is not None and tensor_name.startswith("encoder.") else self

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer, None when it sees everything."""
        return self.layer_windows[layer] if self.layer_windows else None

    def uses_rope(self, layer: int) -> bool:
        """Whether a layer rotates queries and keys."""
        return self.rotates and not (self.no_rope_layers and self.no_rope_layers[layer])

    def uses_local_rope(self, layer: int) -> bool:
        """Whether a layer rotates with `local_rotary_base`."""
        return self.local_rotary_base is not None and self.window_of(layer) is not None

    def softmax_scale_of(self, layer: int) -> float:
        """What multiplies a layer's attention scores."""
        scale = self.kv_channels**-0.5 if self.softmax_scale is None else self.softmax_scale
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def is_moe_layer(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.num_moe_experts is not None and (not self.moe_layer_freq or self.moe_layer_freq[layer])

    def _check_values(self) -> None:
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise CheckpointError(f"{field} = {getattr(self, field)!r}: must be one of {', '.join(choices)}")
        for field in COUNTS + POSITIVE_NUMBERS:
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise CheckpointError(f"{field} = {value!r}: must be positive")

    def _check_attention(self) -> None:
        if self.num_attention_heads % self.num_query_groups:
            raise CheckpointError(
                f"num_query_groups = {self.num_query_groups} does not divide "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        self._check_latent_attention()
        if not self.rotates:
            return
        if self.rotary_percent > 1 or self.rotary_channels % 2 or not self.rotary_channels:
            raise CheckpointError(
                f"rotary_percent = {self.rotary_percent} of kv_channels = {self.kv_channels} is "
                f"{self.rotary_channels} channels: rotation needs an even number of them, and no more than there are"
            )
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "longrope":
            _check_length("short_factor", scaling.short_factor, self.rotary_channels // 2)
            _check_length("long_factor", scaling.long_factor, self.rotary_channels // 2)

    def _check_latent_attention(self) -> None:
        latent = self.latent_attention
        if latent is None:
            return
        for field in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"):
            value = getattr(latent, field)
            if value is not None and value <= 0:
                raise CheckpointError(f"{field} = {value!r}: must be positive")
        if self.kv_channels != latent.cached_head_size or self.num_query_groups != self.num_attention_heads:
            raise CheckpointError(
                f"latent attention with kv_channels = {self.kv_channels} and num_query_groups = "
                f"{self.num_query_groups}: {latent.cached_head_size} and {self.num_attention_heads} are needed"
            )

    def _check_experts(self) -> None:
        if self.num_moe_experts is None:
            return
        self._check_groups_of_experts(self.num_moe_experts)
        if self.moe_router_topk > self.num_moe_experts:
            raise CheckpointError(
                f"moe_router_topk = {self.moe_router_topk} exceeds num_moe_experts = {self.num_moe_experts}"
            )
        if self.moe_ffn_hidden_size is None:
            raise CheckpointError("moe_ffn_hidden_size = None: experts need a size")

    def _check_groups_of_experts(self, num_experts: int) -> None:
        num_groups, num_chosen = self.moe_router_num_groups, self.moe_router_group_topk
        if (num_groups is None) != (num_chosen is None):
            raise CheckpointError(
                f"moe_router_num_groups = {num_groups}, moe_router_group_topk = {num_chosen}: one is useless alone"
            )
        if num_groups is None or num_chosen is None:
            return
        if num_experts % num_groups or num_chosen > num_groups:
            raise CheckpointError(
                f"moe_router_num_groups = {num_groups} does not divide num_moe_experts = {num_experts}, or is less "
                f"than moe_router_group_topk = {num_chosen}"
            )
        group_size = num_experts // num_groups
        if group_size < self.moe_router_scores_per_group or num_chosen * group_size < self.moe_router_topk:
            raise CheckpointError(
                f"{num_chosen} groups of {group_size} experts are too small for moe_router_topk = "
                f"{self.moe_router_topk} and {self.moe_router_scores_per_group} scores a group"
            )


def _check_length(field: str, values: Sequence[object], length: int) -> None:
    if len(values) != length:
        raise CheckpointError(f"{field} has {len(values)} entries, {length} are needed")
