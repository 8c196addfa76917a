"""TransformerConfig: everything that a model's structure depends on, under Megatron's field names where it has one.

Checkpoint readers fill it in; the model modules read it. Knows nothing of file formats and holds no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from kilotron.errors import CheckpointError
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig

RopeScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
QKNorm = Literal["none", "head", "projection"]
NormPlacement = Literal["pre", "post", "sandwich", "post_residual"]

CHOICES: dict[str, tuple[str, ...]] = {
    "normalization": ("RMSNorm", "LayerNorm"),
    "norm_placement": ("pre", "post", "sandwich", "post_residual"),
    "qk_layernorm": ("none", "head", "projection"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "position_embedding_type": ("rope", "learned", "none", "learned_in_stack", "relative"),
}
COUNTS = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "vocab_size", "max_position_embeddings", "num_moe_experts", "moe_router_topk", "moe_ffn_hidden_size",
)  # fmt: skip
POSITIVE_NUMBERS = (
    "layernorm_epsilon", "rotary_base", "rotary_percent", "local_rotary_base", "softmax_scale",
    "attn_logit_softcapping", "final_logit_softcapping", "embedding_multiplier",
)  # fmt: skip


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
    max_position_embeddings: int

    normalization: str = "RMSNorm"
    layernorm_epsilon: float = 1e-5
    layernorm_zero_centered_gamma: bool = False
    """Norm weights are stored as w - 1 (Gemma)."""
    norm_placement: NormPlacement = "pre"
    """Before each sub-layer, after it (OLMo-2), both (Gemma-2 and -3), or after its residual is added (BART)."""
    use_parallel_residual: bool = False
    """Attention and MLP both read the layer's input (GPT-NeoX)."""
    qk_layernorm: QKNorm = "none"
    """Norm of query and key: per head (Qwen3), or over all heads at once (OLMo-2)."""

    add_qkv_bias: bool = False
    add_proj_bias: bool = False
    """Bias of the attention's output projection."""
    add_mlp_bias: bool = False
    gated_linear_unit: bool = True
    activation: str = "silu"

    position_embedding_type: str = "rope"
    """Encoder-decoder models also have tables in each stack, or relative positions."""
    rotary_base: float = 10000.0
    rotary_percent: float = 1.0
    """Leading share of each head that is rotated."""
    rope_scaling: RopeScaling | None = None
    local_rotary_base: float | None = None
    """Layers with a window use this base and no scaling (Gemma-3); None: they are like the others."""

    softmax_scale: float | None = None
    """Multiplies attention scores; None is kv_channels ** -0.5."""
    scale_attn_by_inverse_layer_idx: bool = False
    """GPT-2 option: scores of layer i are divided by i + 1 as well."""
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
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
        if self.layer_windows:
            _check_length("layer_windows", self.layer_windows, self.num_layers)
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
        """How many leading channels of a head are rotated."""
        return int(self.kv_channels * self.rotary_percent)

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

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer, None when it sees everything."""
        return self.layer_windows[layer] if self.layer_windows else None

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
        if self.position_embedding_type != "rope":
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

    def _check_experts(self) -> None:
        if self.num_moe_experts is None:
            return
        if self.moe_router_topk > self.num_moe_experts:
            raise CheckpointError(
                f"moe_router_topk = {self.moe_router_topk} exceeds num_moe_experts = {self.num_moe_experts}"
            )
        if self.moe_ffn_hidden_size is None:
            raise CheckpointError("moe_ffn_hidden_size = None: experts need a size")
        if not self.gated_linear_unit:
            raise CheckpointError("gated_linear_unit = False: experts without a gate are not implemented")
        if self.moe_layer_freq:
            _check_length("moe_layer_freq", self.moe_layer_freq, self.num_layers)


def _check_length(field: str, values: Sequence[object], length: int) -> None:
    if len(values) != length:
        raise CheckpointError(f"{field} has {len(values)} entries, {length} are needed")
