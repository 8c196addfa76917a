"""Rotary position embedding: cos and sin of a step's positions, made once per step and shared by all layers.

Everything is float32. Nothing is tabulated: a token's rotation is computed from its own absolute position alone, so
it cannot depend on the batch, on chunk boundaries or on how long the sequence has become.
"""

import math

import torch
from torch import Tensor

from kilotron.kernels.interface import Rotation
from kilotron.models.transformer_config import RopeScaling, TransformerConfig


class RotaryEmbedding:
    """Rotation by fixed frequencies: position times frequency."""

    def __init__(self, frequencies: Tensor, attention_factor: float = 1.0) -> None:
        """`frequencies`: [rotated channels / 2] float32, on the device of the positions to come."""
        self.frequencies = frequencies
        self.attention_factor = attention_factor

    def rotation_at(self, positions: Tensor) -> Rotation:
        """[T] int64 -> the rotation of each token"""
        angles = positions[:, None].float() * self.frequencies_at(positions)
        return Rotation(angles.cos() * self.attention_factor, angles.sin() * self.attention_factor)

    def frequencies_at(self, positions: Tensor) -> Tensor:
        """Frequencies for each token, or one row for all: something that multiplies [T, 1]."""
        return self.frequencies


class DynamicRotaryEmbedding(RotaryEmbedding):
    """Dynamic NTK scaling: the base grows with the sequence once it exceeds the original length.

    The base used at position p is that of a sequence of length max(p + 1, original). It therefore depends on the token
    alone. This equals what transformers computes for a prompt up to the original length and for every token generated
    after it; for a longer prompt transformers rotates all prompt tokens with the prompt's final length.
    """

    def __init__(self, config: TransformerConfig, scaling: RopeScaling, device: torch.device) -> None:
        super().__init__(_plain_frequencies(config.rotary_base, config.rotary_channels).to(device))
        self.base = config.rotary_base
        self.factor = scaling.factor
        self.original_length = scaling.original_max_position_embeddings
        self.exponents = _exponents(config.rotary_channels).to(device)
        self.growth_exponent = config.rotary_channels / max(config.rotary_channels - 2, 1)

    def frequencies_at(self, positions: Tensor) -> Tensor:
        """[T] int64 -> [T, rotated channels / 2] float32"""
        # In float64, since the last bits of a float32 power depend on a value's place in the tensor.
        length = (positions + 1).clamp(min=self.original_length).double()
        growth = (self.factor * length / self.original_length) - (self.factor - 1)
        scaled = 1.0 / (self.base * growth**self.growth_exponent)[:, None] ** self.exponents.double()
        return torch.where(positions[:, None] < self.original_length, self.frequencies, scaled.float())


def make_rotary_embedding(config: TransformerConfig, device: torch.device, max_sequence_length: int) -> RotaryEmbedding:
    """The rotary embedding of a model, or of its layers without a window where those differ.

    longrope (Phi-3) has two sets of frequencies. One is chosen here, once: the long one if sequences may become
    longer than the original length (`max_sequence_length`), so that a token's rotation never changes under way.
    """
    base, channels, scaling = config.rotary_base, config.rotary_channels, config.rope_scaling
    frequencies = _plain_frequencies(base, channels)
    attention_factor = 1.0
    if scaling is None:
        pass
    elif scaling.kind == "dynamic":
        return DynamicRotaryEmbedding(config, scaling, device)
    elif scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind == "llama3":
        frequencies = _llama3_frequencies(frequencies, scaling)
    elif scaling.kind == "yarn":
        frequencies = _yarn_frequencies(base, channels, scaling)
        attention_factor = scaling.yarn_attention_factor
    else:
        frequencies = _longrope_frequencies(base, channels, scaling, max_sequence_length)
        attention_factor = _longrope_attention_factor(scaling)
    return RotaryEmbedding(frequencies.to(device), attention_factor)


def make_local_rotary_embedding(config: TransformerConfig, device: torch.device) -> RotaryEmbedding | None:
    """The rotary embedding of layers with a window, where it differs (Gemma-3): its own base, never scaled."""
    if config.local_rotary_base is None:
        return None
    return RotaryEmbedding(_plain_frequencies(config.local_rotary_base, config.rotary_channels).to(device))


def _exponents(channels: int) -> Tensor:
    return torch.arange(0, channels, 2, dtype=torch.float32) / channels


def _plain_frequencies(base: float, channels: int) -> Tensor:
    return 1.0 / base ** _exponents(channels)


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Short wavelengths stay, long ones are divided by the factor, those between are mixed smoothly."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = share.clamp(0, 1)
    return (1 - share) * frequencies / scaling.factor + share * frequencies


def _yarn_frequencies(base: float, channels: int, scaling: RopeScaling) -> Tensor:
    """A linear ramp over the channels from the plain frequencies to the divided ones."""
    length = scaling.original_max_position_embeddings

    def channel_that_turns(times: float) -> float:
        return channels * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel_that_turns(scaling.beta_fast), channel_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    if low == high:
        high += 0.001
    divided_share = ((torch.arange(channels // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    frequencies = _plain_frequencies(base, channels)
    return frequencies / scaling.factor * divided_share + frequencies * (1 - divided_share)


def _longrope_frequencies(base: float, channels: int, scaling: RopeScaling, max_sequence_length: int) -> Tensor:
    is_long = max_sequence_length > scaling.original_max_position_embeddings
    divisors = torch.tensor(scaling.long_factor if is_long else scaling.short_factor, dtype=torch.float32)
    return 1.0 / (divisors * base ** _exponents(channels))


def _longrope_attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))
