"""InferenceWrapperConfig: what Megatron's scripts tell a wrapper about its model, checked against the model itself."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

from kilotron.errors import ConfigError
from kilotron.models.transformer_config import TransformerConfig


@dataclass(kw_only=True)
class InferenceWrapperConfig:
    """Megatron's fields. The model knows better what it is, so these are checked rather than followed.

    Other attributes (`add_attributes`, and whatever a namespace of arguments holds) are kept and have no effect.
    """

    hidden_size: int | None = None
    params_dtype: torch.dtype | None = None
    inference_batch_times_seqlen_threshold: int | None = None
    """When Megatron splits a pipeline's batch; without effect here."""
    padded_vocab_size: int | None = None
    inference_max_requests: int | None = None
    """Rows of a static engine's batch, unless the engine is told."""
    inference_max_seq_length: int | None = None
    """Most tokens of prompt and output in a static engine, unless the engine is told."""
    fp32_residual_connection: bool = False
    """Without effect here: each kernel backend adds residuals in its own way."""
    nccl_all_reduce_for_prefill: bool = False
    """Without effect here: a replica runs on one device."""

    @classmethod
    def of(cls, value: object) -> Self | None:
        """From the second argument of a wrapper as Megatron's scripts have it: a config, parsed arguments, or nothing.

        Raises:
            ConfigError: it is neither.
        """
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Namespace):
            raise ConfigError(
                "a wrapper takes an InferenceWrapperConfig, parsed arguments or an inference context beside the model, "
                f"not {type(value).__name__}"
            )
        known = {f.name for f in fields(cls)}
        return cls(**{name: held for name, held in vars(value).items() if name in known})

    def add_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Sets attributes by name."""
        for name, value in attributes.items():
            setattr(self, name, value)

    def check(self, config: TransformerConfig, dtype: torch.dtype) -> None:
        """
        Raises:
            ConfigError: it speaks of another model.
        """
        stated = ("hidden_size", self.hidden_size, config.hidden_size), ("params_dtype", self.params_dtype, dtype)
        for name, value, truth in stated:
            if value is not None and value != truth:
                raise ConfigError(f"{name}={value}, but the model has {truth}; leave it out, or load another model")
        # Some scripts give the number of tokens here, without the padding.
        if self.padded_vocab_size is not None and self.padded_vocab_size < config.num_tokens:
            raise ConfigError(
                f"padded_vocab_size={self.padded_vocab_size}, but the model has {config.num_tokens} tokens"
            )
