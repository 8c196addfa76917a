"""Mixtures of experts in Megatron's saved arguments: where they are, and how tokens are routed to them."""

from typing import Any

from kilotron.models.config_fields import ConfigFields


def read_experts(args: ConfigFields) -> dict[str, Any]:
    """The fields of TransformerConfig about experts; none for a dense model."""
    if not args.values.get("num_experts"):
        return {}
    shared = "moe_shared_expert_intermediate_size"
    topk = args.count("moe_router_topk", 2)
    return {
        "num_moe_experts": args.count("num_experts"),
        "moe_router_topk": topk,
        "moe_ffn_hidden_size": args.count("moe_ffn_hidden_size", args.count("ffn_hidden_size")),
        "moe_layer_freq": _moe_layers(args),
        "moe_router_float32": args.text("moe_router_dtype", "none") in ("fp32", "fp64"),
        "moe_shared_expert_intermediate_size": args.count(shared) if args.values.get(shared) else None,
        "moe_shared_expert_gate": args.flag("moe_shared_expert_gate", False),
        "add_router_bias": args.flag("add_bias_linear", True),
        **_routing(args, topk),
    }


def _routing(args: ConfigFields, topk: int) -> dict[str, Any]:
    balancing = args.values.get("moe_router_load_balancing_type")
    if "quantile_balancing" in (balancing if isinstance(balancing, list) else [balancing]):
        raise args.wrong("moe_router_load_balancing_type", "a way of routing other than 'quantile_balancing'")
    if balancing in ("sinkhorn", ["sinkhorn"]):
        # Balanced in training only; scores of one expert are sigmoids, those of several a softmax over all experts.
        function = "sigmoid" if topk == 1 else "softmax"
        return {"moe_router_score_function": function, "norm_topk_prob": False}
    function = args.text("moe_router_score_function", "softmax")
    if function not in ("softmax", "sigmoid"):
        raise args.wrong("moe_router_score_function", "'softmax' or 'sigmoid'")
    is_softmax, is_pre_softmax = function == "softmax", args.flag("moe_router_pre_softmax", False)
    has_bias = args.flag("moe_router_enable_expert_bias", False)
    if has_bias and is_softmax:
        raise args.wrong("moe_router_enable_expert_bias", "moe_router_score_function = 'sigmoid'")
    factor = args.optional_number("moe_router_topk_scaling_factor")
    return {
        "moe_router_score_function": function,
        # A softmax over the chosen experts is that over all, scaled to sum to one.
        "norm_topk_prob": not is_pre_softmax if is_softmax else topk > 1,
        "moe_router_enable_expert_bias": has_bias,
        "moe_router_topk_scaling_factor": factor or None,
        **_groups(args, topk, by_logits=is_softmax and not is_pre_softmax),
    }


def _groups(args: ConfigFields, topk: int, *, by_logits: bool) -> dict[str, Any]:
    if not args.values.get("moe_router_group_topk"):
        return {}
    num_chosen = args.count("moe_router_group_topk")
    if topk < num_chosen:
        raise args.wrong("moe_router_group_topk", f"at most moe_router_topk = {topk}")
    return {
        "moe_router_num_groups": args.count("moe_router_num_groups"),
        "moe_router_group_topk": num_chosen,
        "moe_router_scores_per_group": topk // num_chosen,
        "moe_router_groups_by_logits": by_logits,
    }


def _moe_layers(args: ConfigFields) -> tuple[bool, ...]:
    """Every n-th layer from the first, or those marked 1 in a list."""
    num_layers = args.count("num_layers")
    if isinstance(args.values.get("moe_layer_freq"), list):
        marks = args.integers("moe_layer_freq")
        if len(marks) != num_layers:
            raise args.wrong("moe_layer_freq", f"a number for each of {num_layers} layers")
        return tuple(bool(mark) for mark in marks)
    every = args.count("moe_layer_freq", 1)
    return tuple(layer % every == 0 for layer in range(num_layers))
