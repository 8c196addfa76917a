"""RelativePositionBias: T5's learned bias of attention scores by the bucket of the distance between query and key."""

import math

import torch
from torch import Tensor

from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import empty_parameter
from kilotron.models.transformer_config import TransformerConfig


class RelativePositionBias(Layer):
    """One number per bucket and head (Raffel et al. 2020). Expanded over distances once the weights are there."""

    float32_parameters = ("weight",)

    def __init__(self, config: TransformerConfig, *, is_causal: bool) -> None:
        super().__init__()
        own = config.encoder_decoder
        if own is None:
            raise RuntimeError("relative positions belong to encoder-decoder models")
        self.is_causal = is_causal
        self.num_buckets = own.num_position_buckets
        self.max_distance = own.max_position_distance
        self.weight = empty_parameter(self.num_buckets, config.num_attention_heads)

    def forward(self) -> Tensor:
        """The bias by distance, float32.

        Causal: [heads, max_distance + 1], column d for a key d tokens before the query. Else
        [heads, 2 * max_distance + 1], column max_distance + (key - query). All farther ones equal the outermost.
        """
        if self.is_causal:
            buckets = _bucket(torch.arange(self.max_distance + 1), self.num_buckets, self.max_distance)
        else:
            offsets = torch.arange(-self.max_distance, self.max_distance + 1)
            half = self.num_buckets // 2
            buckets = _bucket(offsets.abs(), half, self.max_distance) + half * (offsets > 0)
        return self.weight[buckets.to(self.weight.device)].t().contiguous()


def _bucket(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """[n] int64, none negative -> [n]: one bucket each for the smaller half, then logarithmically wider ones."""
    exact = num_buckets // 2
    share = torch.log(distances.float() / exact) / math.log(max_distance / exact)
    far = (exact + (share * (num_buckets - exact)).to(torch.int64)).clamp(max=num_buckets - 1)
    return torch.where(distances < exact, distances, far)
