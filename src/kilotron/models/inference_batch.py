"""InferenceBatch: the tensors of one step, all that a model sees of it.

Letters: T tokens of the step, all rows concatenated; S rows that sample; P prompt tokens to score.
"""

from dataclasses import dataclass

from torch import Tensor

from kilotron.kernels.interface import AttentionPlan, KVLayer


@dataclass(frozen=True, slots=True)
class InferenceBatch:
    """One step's whole input on one rank."""

    token_ids: Tensor
    """[T] int64"""
    positions: Tensor
    """[T] int64; absolute position of each token in its request"""
    kv_slots: Tensor
    """[T] int64; where each token's key and value go: block id * block size + offset"""
    kv_layers: list[KVLayer]
    """The paged cache, one view per layer."""
    attention: AttentionPlan
    logits_index: Tensor
    """[S + P] int64; tokens whose logits are needed: the sampling rows' last ones, then the scored prompt tokens."""
    num_samples: int
    """S"""
