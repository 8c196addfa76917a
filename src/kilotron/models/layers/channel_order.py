"""Orders of channels: from how checkpoints store rotated heads to how the kernels rotate them."""

import torch
from torch import Tensor


def pairs_to_halves(head_size: int, num_rotated: int) -> Tensor:
    """[head_size] int64: even channels of the first `num_rotated`, then odd ones, then the others.

    Rotation of neighbouring channels (0, 1), (2, 3)... becomes that of the two halves of the channels.
    """
    rotated = torch.arange(num_rotated).view(-1, 2).t().reshape(-1)
    return torch.cat((rotated, torch.arange(num_rotated, head_size)))


def order_of_heads(order: Tensor, num_heads: int) -> Tensor:
    """[num_heads * channels] int64: the same order in each head."""
    return (torch.arange(num_heads)[:, None] * len(order) + order).reshape(-1)
