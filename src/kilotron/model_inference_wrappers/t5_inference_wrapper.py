"""T5InferenceWrapper: encoder-decoder models, T5 and BART alike."""

from typing import cast

from torch import Tensor

from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.encoder_decoder_model import EncoderDecoderModel
from kilotron.models.inference_batch import InferenceBatch


class T5InferenceWrapper(GPTInferenceWrapper):
    """One forward step of an `EncoderDecoderModel`: new encoder inputs first, then the decoder's tokens.

    See `GPTInferenceWrapper` for the arguments.
    """

    @property
    def encoder_decoder(self) -> EncoderDecoderConfig | None:
        """The model's."""
        return self.model.config.encoder_decoder

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        """Logits for `batch.logits_index` only."""
        if batch.encoder is not None and len(batch.encoder.lengths):
            cast(EncoderDecoderModel, self.model).encode(batch)
        return super().run_one_forward_step(batch)
