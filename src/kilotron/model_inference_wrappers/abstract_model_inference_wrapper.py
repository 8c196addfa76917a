"""AbstractModelInferenceWrapper: what a controller and an engine need of a model, whatever the model is."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.errors import ConfigError
from kilotron.kernels.interface import KernelBackend, KVShape
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.model_inference_wrappers.inference_wrapper_config import InferenceWrapperConfig
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.inference_batch import InferenceBatch


class AbstractModelInferenceWrapper(ABC):
    """Runs one step of a model. Subclass it to serve a model of your own.

    A model that knows nothing of an engine's batches is served through `get_batch_for_context_window`; see
    `ContextWindowWrapper`.
    """

    inference_wrapper_config: InferenceWrapperConfig | None = None
    """What Megatron's scripts say of the model; sizes in it count where an engine is told none."""
    inference_context: DynamicInferenceContext | None = None
    """The context of an engine that is to be built around this wrapper."""

    def __init__(
        self,
        model: Any = None,
        inference_wrapper_config: object = None,
        inference_context: DynamicInferenceContext | None = None,
    ) -> None:
        """Keeps all three, as Megatron's wrappers do; one that needs none of them need not call this.

        Args:
            model: whatever the wrapper runs.
            inference_wrapper_config: what Megatron's scripts give here: an `InferenceWrapperConfig`, parsed arguments,
                or the inference context.
            inference_context: the context of an engine that is to be built around this wrapper.

        Raises:
            ConfigError: the config is none of these.
        """
        if isinstance(inference_wrapper_config, DynamicInferenceContext):
            inference_wrapper_config, inference_context = None, inference_wrapper_config
        self.model = model
        self.inference_wrapper_config = InferenceWrapperConfig.of(inference_wrapper_config)
        self.inference_context = inference_context

    @property
    def vocab_size(self) -> int:
        """Columns of the logits that are real tokens; any beyond are padding. Unless overridden, the config's.

        Raises:
            ConfigError: the config says nothing of it.
        """
        config = self.inference_wrapper_config
        if config is None or config.padded_vocab_size is None:
            raise ConfigError(f"{type(self).__name__} has no vocab_size; define it, or give padded_vocab_size")
        return config.padded_vocab_size

    @property
    def kernels(self) -> KernelBackend:
        """Keeps the KV cache and samples; at work where the logits are."""
        return ReferenceBackend()

    @property
    def max_sequence_length(self) -> int | None:
        """Most tokens of prompt and output; None where the model sets no limit."""
        return None

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text, where the model names them; otherwise the tokenizer's counts."""
        return frozenset()

    @property
    def encoder_decoder(self) -> EncoderDecoderConfig | None:
        """What there is to know of the encoder; None for decoder-only models."""
        return None

    def cache_shape(self, num_blocks: int, block_size: int) -> KVShape:
        """The KV cache that the model needs; the least there can be, for one that keeps nothing in it."""
        return KVShape(
            num_layers=1,
            num_blocks=num_blocks,
            block_size=block_size,
            num_query_groups=1,
            kv_channels=1,
            dtype=torch.float32,
        )

    def prep_model_for_inference(self, prompts_tokens: Tensor | None = None) -> None:  # noqa: B027 - an optional hook
        """Called once before the first step, without tokens; they are for `ContextWindowWrapper`'s models."""

    @abstractmethod
    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        """Computes the step and writes its keys and values.

        Returns:
            Logits [len(batch.logits_index), padded vocabulary] float32, on the batch's device; may be overwritten.
        """
