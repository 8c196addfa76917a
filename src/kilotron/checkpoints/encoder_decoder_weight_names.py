"""What checkpoints of encoder-decoder models call the tensors that kilotron knows under other names: tables only."""

from dataclasses import replace

from kilotron.checkpoints.weight_names import Source, WeightNames


def _t5_attention(ours: str, theirs: str) -> dict[str, Source]:
    return {
        f"{ours}.linear_qkv": Source((f"{theirs}.q", f"{theirs}.k", f"{theirs}.v")),
        f"{ours}.linear_q": Source((f"{theirs}.q",)),
        f"{ours}.linear_kv": Source((f"{theirs}.k", f"{theirs}.v")),
        f"{ours}.linear_proj": Source((f"{theirs}.o",)),
        f"{ours}.relative_attention_bias": Source((f"{theirs}.relative_attention_bias",)),
    }


def _t5_stack(stack: str, *, mlp: int, is_gated: bool) -> dict[str, Source]:
    ours, theirs = f"{stack}.layers.{{layer}}.", f"{stack}.block.{{layer}}.layer."
    inner = ("wi_0", "wi_1") if is_gated else ("wi",)
    return {
        ours + "input_layernorm": Source((f"{theirs}0.layer_norm",)),
        **_t5_attention(f"{ours}self_attention", f"{theirs}0.SelfAttention"),
        ours + "pre_mlp_layernorm": Source((f"{theirs}{mlp}.layer_norm",)),
        ours + "mlp.linear_fc1": Source(tuple(f"{theirs}{mlp}.DenseReluDense.{name}" for name in inner)),
        ours + "mlp.linear_fc2": Source((f"{theirs}{mlp}.DenseReluDense.wo",)),
        f"{stack}.final_layernorm": Source((f"{stack}.final_layer_norm",)),
    }


def _t5(*, is_gated: bool) -> WeightNames:
    cross = "decoder.block.{layer}.layer.1."
    modules = {
        "embedding.word_embeddings": Source(("shared",)),
        **_t5_stack("encoder", mlp=1, is_gated=is_gated),
        **_t5_stack("decoder", mlp=2, is_gated=is_gated),
        "decoder.layers.{layer}.pre_cross_attn_layernorm": Source((cross + "layer_norm",)),
        **_t5_attention("decoder.layers.{layer}.cross_attention", cross + "EncDecAttention"),
        "output_layer": Source(("lm_head",)),
    }
    # The first of these is a copy of the table that old files have; the second was never used by any model.
    ignored = (r"^(encoder|decoder)\.embed_tokens\.weight$", r"EncDecAttention\.relative_attention_bias\.weight$")
    return WeightNames(modules, prefix="", ignored=ignored)


def _bart_attention(ours: str, theirs: str) -> dict[str, Source]:
    return {
        f"{ours}.linear_qkv": Source((f"{theirs}.q_proj", f"{theirs}.k_proj", f"{theirs}.v_proj")),
        f"{ours}.linear_q": Source((f"{theirs}.q_proj",)),
        f"{ours}.linear_kv": Source((f"{theirs}.k_proj", f"{theirs}.v_proj")),
        f"{ours}.linear_proj": Source((f"{theirs}.out_proj",)),
    }


def _bart_stack(stack: str) -> dict[str, Source]:
    ours, theirs = f"{stack}.layers.{{layer}}.", f"model.{stack}.layers.{{layer}}."
    return {
        f"{stack}.position_embeddings": Source((f"model.{stack}.embed_positions",)),
        f"{stack}.embedding_layernorm": Source((f"model.{stack}.layernorm_embedding",)),
        **_bart_attention(f"{ours}self_attention", f"{theirs}self_attn"),
        ours + "input_layernorm": Source((theirs + "self_attn_layer_norm",)),
        ours + "mlp.linear_fc1": Source((theirs + "fc1",)),
        ours + "mlp.linear_fc2": Source((theirs + "fc2",)),
        ours + "pre_mlp_layernorm": Source((theirs + "final_layer_norm",)),
    }


def _megatron_stack(stack: str) -> dict[str, Source]:
    layer = f"{stack}.layers.{{layer}}."
    same = ("input_layernorm", "self_attention.linear_proj", "pre_mlp_layernorm", "mlp.linear_fc1", "mlp.linear_fc2")
    return {
        **{layer + name: Source((layer + name,)) for name in same},
        layer + "self_attention.linear_qkv": Source((layer + "self_attention.linear_qkv",), "grouped_qkv"),
        layer + "self_attention.relative_attention_bias": Source(
            (f"{stack}_relative_pos_emb.relative_attention_bias",)
        ),
        # Both stacks look into one table.
        f"{stack}.position_embeddings": Source(("embedding.position_embeddings",)),
        f"{stack}.final_layernorm": Source((f"{stack}.final_layernorm",)),
    }


def _megatron_t5() -> WeightNames:
    layer = "decoder.layers.{layer}."
    same = ("pre_cross_attn_layernorm", "cross_attention.linear_q", "cross_attention.linear_proj")
    modules = {
        "embedding.word_embeddings": Source(("embedding.word_embeddings",)),
        **_megatron_stack("encoder"),
        **_megatron_stack("decoder"),
        **{layer + name: Source((layer + name,)) for name in same},
        # As the other, without queries.
        layer + "cross_attention.linear_kv": Source((layer + "cross_attention.linear_kv",), "grouped_qkv"),
        "output_layer": Source(("lm_head.output_layer",)),
        "lm_head": Source(("lm_head.output_layer",)),
    }
    return WeightNames(modules, prefix="", ignored=(r"^output_layer\.", r"^position_embeddings\."))


def _with_own_positions(names: WeightNames) -> WeightNames:
    own: dict[str, Source] = {}
    for stack in ("encoder", "decoder"):
        same = ("layers.{layer}.self_attention.relative_attention_bias", "position_embeddings", "embedding_layernorm")
        own |= {f"{stack}.{name}": Source((f"{stack}.{name}",)) for name in same}
    return replace(names, modules={**names.modules, **own})


MEGATRON_T5 = _megatron_t5()
# Of models that megatron-core itself cannot run (UMT5, BART); as `kilotron convert` writes them.
MEGATRON_T5_OWN_POSITIONS = _with_own_positions(MEGATRON_T5)
T5 = _t5(is_gated=False)
T5_GATED = _t5(is_gated=True)
BART = WeightNames(
    {
        "embedding.word_embeddings": Source(("model.shared",)),
        **_bart_stack("encoder"),
        **_bart_stack("decoder"),
        "decoder.layers.{layer}.pre_cross_attn_layernorm": Source(
            ("model.decoder.layers.{layer}.encoder_attn_layer_norm",)
        ),
        **_bart_attention("decoder.layers.{layer}.cross_attention", "model.decoder.layers.{layer}.encoder_attn"),
        "output_layer": Source(("lm_head",)),
        "lm_head.bias": Source(("final_logits_bias",), "single_row"),
    },
    prefix="model.",
    ignored=(r"(encoder|decoder)\.embed_tokens\.weight$",),
)
