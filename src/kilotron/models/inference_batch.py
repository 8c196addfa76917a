"""InferenceBatch: the tensors of one step, all that a model sees of it.

Letters: T tokens of the step, all rows concatenated; S rows that sample; P prompt tokens to score.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kilotron.kernels.interface import AttentionPlan, KVLayer


@dataclass(frozen=True, slots=True)
class EncoderBatch:
    """What a step of an encoder-decoder model has besides: encoder inputs that are new, and cross-attention.

    E tokens of encoder inputs, whole ones, concatenated; W of them whose keys and values go to the cache.
    """

    token_ids: Tensor
    """[E] int64"""
    positions: Tensor
    """[E] int64"""
    lengths: np.ndarray
    """[inputs] int64, on the host; their sum is E."""
    written: Tensor
    """[W] int64; which of the E tokens. The others' keys and values are in the cache already."""
    kv_slots: Tensor
    """[W] int64"""
    cross_attention: AttentionPlan
    """Each of the step's T tokens as a row of its own that comes last in its request's encoder input, so that it sees
    all of that."""


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
    encoder: EncoderBatch | None = None
    """None for decoder-only models."""
