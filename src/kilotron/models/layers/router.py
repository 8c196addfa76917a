"""Router: picks a few experts for each token, and says how much each of them counts."""

import torch
from torch import Tensor

from kilotron.kernels.interface import KernelBackend
from kilotron.models.layers.experts import sigmoid
from kilotron.models.layers.linear import Linear, empty_parameter
from kilotron.models.transformer_config import TransformerConfig

# As Megatron and transformers have it; scores of 0 stay 0.
_LEAST_SUM = 1e-20


class Router(Linear):
    """Scores of experts by softmax or sigmoid; the best `moe_router_topk`, perhaps of the best groups only."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, num_experts: int) -> None:
        has_bias = config.add_router_bias
        super().__init__(kernels, config.hidden_size, (num_experts,), bias=has_bias, can_round=False)
        self.config = config
        self.expert_bias = empty_parameter(num_experts) if config.moe_router_enable_expert_bias else None
        own = ("weight", "bias") if config.moe_router_float32 else ()
        self.float32_parameters = (*own, "expert_bias")

    def route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> the weights of the chosen experts [T, chosen] float32, and their ids, [T, chosen] int64."""
        logits = self(hidden.float() if self.config.moe_router_float32 else hidden).float()
        scores = self._scores(logits)
        chosen_by = scores if self.expert_bias is None else scores + self.expert_bias
        weights, expert_ids = self._restricted(chosen_by, logits).topk(self.config.moe_router_topk, dim=-1)
        if chosen_by is not scores:
            weights = scores.gather(-1, expert_ids)
        if self.config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + _LEAST_SUM)
        factor = self.config.moe_router_topk_scaling_factor
        return (weights if factor is None else weights * factor), expert_ids

    def _scores(self, logits: Tensor) -> Tensor:
        if self.config.moe_router_score_function == "sigmoid":
            return sigmoid(logits)
        return torch.softmax(logits, dim=-1)

    def _restricted(self, scores: Tensor, logits: Tensor) -> Tensor:
        """The scores [T, experts], minus infinity outside of the best groups of experts."""
        config = self.config
        if config.moe_router_num_groups is None or config.moe_router_group_topk is None:
            return scores
        judged_by = logits if config.moe_router_groups_by_logits else scores
        groups = judged_by.unflatten(-1, (config.moe_router_num_groups, -1))
        of_groups = groups.topk(config.moe_router_scores_per_group, dim=-1).values.sum(dim=-1)
        best = of_groups.topk(config.moe_router_group_topk, dim=-1).indices
        is_out = torch.ones_like(of_groups, dtype=torch.bool).scatter_(-1, best, value=False)
        return scores.masked_fill(is_out.repeat_interleave(groups.shape[-1], dim=-1), -torch.inf)
