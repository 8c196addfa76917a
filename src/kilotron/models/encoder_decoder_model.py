"""EncoderDecoderModel: T5 and BART. A GPTModel whose decoder also attends to what an encoder made of another text.

Sees the tensors of one step and the kernels, never the context or the scheduler. Parameters have Megatron's names.
"""

from typing import Any

from torch import Tensor

from kilotron.errors import CheckpointError
from kilotron.kernels.interface import KernelBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import EncoderBatch, InferenceBatch
from kilotron.models.layers.encoder_decoder_block import CrossDecoder, Encoder
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import empty_parameter
from kilotron.models.transformer_config import TransformerConfig


class OutputBias(Layer):
    """Added to the logits."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = empty_parameter(vocab_size)

    def forward(self, logits: Tensor) -> Tensor:
        """[n, vocabulary] float32"""
        return logits + self.bias.float()


class EncoderDecoderModel(GPTModel):
    """An encoder-decoder transformer. Built without memory for weights; `load_weights` brings them."""

    def __init__(
        self, config: TransformerConfig, kernels: KernelBackend, max_sequence_length: int | None = None
    ) -> None:
        own = config.encoder_decoder
        if own is None:
            raise CheckpointError("the model has no encoder; build a GPTModel")
        super().__init__(config, kernels, max_sequence_length)
        self.encoder = Encoder(config.encoder, own, kernels)
        self.logits_multiplier = own.logits_multiplier
        self.lm_head: Any = OutputBias(config.vocab_size) if own.has_output_bias else None

    def make_decoder(self) -> Any:
        """With cross-attention."""
        config = self.config
        if config.encoder_decoder is None:
            raise CheckpointError("the model has no encoder; build a GPTModel")
        return CrossDecoder(config, config.encoder_decoder, self.kernels)

    def encode(self, batch: InferenceBatch) -> None:
        """Runs the encoder over the step's new inputs and writes the keys and values that decoders see."""
        encoder = _encoder_of(batch)
        encoded = self.encoder(self.embedding(encoder.token_ids, encoder.positions), encoder)
        if len(encoder.written) < len(encoded):
            encoded = encoded[encoder.written]
        self.decoder.write(encoded, batch, encoder)

    def forward(self, batch: InferenceBatch) -> Tensor:
        """Hidden states of the tokens in `batch.logits_index`: [S + P, hidden]. Their encoder input was encoded."""
        hidden = self.embedding(batch.token_ids, batch.positions)
        return self.decoder(hidden, batch, _encoder_of(batch))

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocabulary] float32"""
        logits = super().compute_logits(hidden if self.logits_multiplier == 1.0 else hidden * self.logits_multiplier)
        return logits if self.lm_head is None else self.lm_head(logits)

    def pack(self) -> None:
        """Makes of the loaded weights what steps need."""
        self.encoder.pack()
        super().pack()


def _encoder_of(batch: InferenceBatch) -> EncoderBatch:
    if batch.encoder is None:
        raise RuntimeError("a step of an encoder-decoder model came without its encoder inputs")
    return batch.encoder
