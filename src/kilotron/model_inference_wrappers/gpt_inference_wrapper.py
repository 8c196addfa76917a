"""GPTInferenceWrapper: decoder-only models."""

from torch import Tensor

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.errors import ConfigError
from kilotron.kernels.interface import KernelBackend, KVShape
from kilotron.model_inference_wrappers.abstract_model_inference_wrapper import AbstractModelInferenceWrapper
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import InferenceBatch


class GPTInferenceWrapper(AbstractModelInferenceWrapper):
    """One forward step of a `GPTModel`.

    Args:
        model: with its weights.
        inference_wrapper_config: see `AbstractModelInferenceWrapper`; not needed.
        inference_context: likewise.

    Raises:
        ConfigError: the config speaks of another model, or the model has an encoder.
    """

    def __init__(
        self,
        model: GPTModel,
        inference_wrapper_config: object = None,
        inference_context: DynamicInferenceContext | None = None,
    ) -> None:
        super().__init__(model, inference_wrapper_config, inference_context)
        self.model: GPTModel = model
        if model.config.encoder_decoder is not None and self.encoder_decoder is None:
            raise ConfigError("the model has an encoder; put it into a T5InferenceWrapper")
        if self.inference_wrapper_config is not None:
            self.inference_wrapper_config.check(model.config, next(model.parameters()).dtype)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits that are real tokens."""
        return self.model.config.num_tokens

    @property
    def kernels(self) -> KernelBackend:
        """The model's."""
        return self.model.kernels

    @property
    def max_sequence_length(self) -> int:
        """The model's context length."""
        return self.model.config.context_length

    @property
    def eos_ids(self) -> frozenset[int]:
        """As in the model's config."""
        return frozenset(self.model.config.eos_token_ids)

    def cache_shape(self, num_blocks: int, block_size: int) -> KVShape:
        """Keys and values in the type of the weights."""
        config = self.model.config
        return KVShape(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_query_groups=config.num_query_groups,
            kv_channels=config.kv_channels,
            dtype=next(self.model.parameters()).dtype,
        )

    def prep_model_for_inference(self, prompts_tokens: Tensor | None = None) -> None:
        """Switches training-only behaviour off."""
        self.model.eval()

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        """Hidden states through all layers, logits for `batch.logits_index` only."""
        return self.model.compute_logits(self.model(batch))
