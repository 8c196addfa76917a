"""What Megatron checkpoints call the tensors of a GPT model, in the one form that their reader gives them."""

from kilotron.checkpoints.weight_names import Source, WeightNames

_LAYER = "decoder.layers.{layer}."
_EXPERT = _LAYER + "mlp.experts.local_experts.{expert}."

_SAME_NAMES = (
    "embedding.word_embeddings",
    "embedding.position_embeddings",
    _LAYER + "input_layernorm",
    _LAYER + "self_attention.core_attention",
    _LAYER + "self_attention.q_layernorm",
    _LAYER + "self_attention.k_layernorm",
    _LAYER + "self_attention.kv_layernorm",
    _LAYER + "self_attention.linear_q_proj",
    _LAYER + "self_attention.linear_q_down_proj",
    _LAYER + "self_attention.linear_q_up_proj",
    _LAYER + "self_attention.linear_kv_down_proj",
    _LAYER + "self_attention.linear_kv_up_proj",
    _LAYER + "self_attention.linear_proj",
    _LAYER + "pre_mlp_layernorm",
    _LAYER + "mlp.linear_fc1",
    _LAYER + "mlp.linear_fc2",
    _LAYER + "mlp.router",
    _LAYER + "mlp.shared_experts.linear_fc1",
    _LAYER + "mlp.shared_experts.linear_fc2",
    # Of models that megatron-core itself cannot run; as `kilotron convert` writes them.
    _LAYER + "post_self_attn_layernorm",
    _LAYER + "post_mlp_layernorm",
    "decoder.final_layernorm",
    "output_layer",
)

MEGATRON_GPT = WeightNames(
    {name: Source((name,)) for name in _SAME_NAMES}
    | {
        _LAYER + "self_attention.linear_qkv": Source((_LAYER + "self_attention.linear_qkv",), "grouped_qkv"),
        _LAYER + "mlp.experts.linear_fc1": Source((_EXPERT + "linear_fc1",)),
        _LAYER + "mlp.experts.linear_fc2": Source((_EXPERT + "linear_fc2",)),
        # One tensor, no module of its own there.
        _LAYER + "mlp.shared_experts.gate.weight": Source((_LAYER + "mlp.shared_experts.gate_weight",)),
    },
    prefix="",
    # Multi-token prediction is for training, and for guessing ahead.
    ignored=(r"^mtp\.", r"\.local_tokens_per_expert$"),
)
