"""GPTModel: embedding, transformer layers and output layer of any decoder-only model that a config describes.

Sees the tensors of one step and the kernels, never the context or the scheduler. Parameters have Megatron's names.
"""

from typing import Any

import torch
from torch import Tensor

from kilotron.kernels.interface import KernelBackend, PackedExperts, PackedLinear
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.embedding import LanguageModelEmbedding
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear, TiedLinear
from kilotron.models.layers.rotary_embedding import make_local_rotary_embedding, make_rotary_embedding
from kilotron.models.layers.transformer_layer import Rotations, TransformerBlock
from kilotron.models.quantization.rounding import Rounding
from kilotron.models.transformer_config import TransformerConfig


class GPTModel(Layer):
    """A decoder-only transformer. Built without memory for weights; `load_weights` brings them."""

    def __init__(
        self, config: TransformerConfig, kernels: KernelBackend, max_sequence_length: int | None = None
    ) -> None:
        """`max_sequence_length`, the engine's limit, chooses between Phi-3's short and long rope frequencies.

        None stands for the config's context length.
        """
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.embedding = LanguageModelEmbedding(config, kernels)
        self.decoder = self.make_decoder()
        self.output_layer: Linear | TiedLinear = TiedLinear(kernels)
        if config.untie_embeddings_and_output_weights:
            self.output_layer = Linear(kernels, config.hidden_size, (config.vocab_size,), bias=False)
        self.rotary_embedding = self.local_rotary_embedding = None
        if config.rotates:
            limit = max_sequence_length or config.context_length
            self.rotary_embedding = make_rotary_embedding(config, kernels.device, limit)
            self.local_rotary_embedding = make_local_rotary_embedding(config, kernels.device)

    def make_decoder(self) -> Any:
        """The layers; models of other forms have others."""
        return TransformerBlock(self.config, self.kernels)

    def forward(self, batch: InferenceBatch) -> Tensor:
        """Hidden states of the tokens in `batch.logits_index` after the final norm: [S + P, hidden]."""
        hidden = self.embedding(batch.token_ids, batch.positions)
        return self.decoder(hidden, batch, self._rotations(batch.positions))

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocabulary] float32"""
        logits = self.output_layer(hidden).float()
        softcap = self.config.final_logit_softcapping
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def tie_output_layer(self, rounding: Rounding | None = None, packed: PackedLinear | None = None) -> None:
        """Makes the loaded embedding table the output weight too, where the config ties them.

        With `rounding` the output weight is a quantized copy; the table itself stays. `packed` is what was made of it
        before.
        """
        if not isinstance(self.output_layer, TiedLinear):
            return
        if packed is not None:
            self.output_layer.packed = packed
            return
        table = self.embedding.word_embeddings.weight
        self.output_layer.pack(rounding.quantize(table, table.dtype, table.device) if rounding else table)

    def pack(self) -> None:
        """Makes of the loaded weights what steps need, once all of them are packed."""
        self.decoder.pack()

    def unpack(self) -> None:
        """Lets go of what `pack` made: new weights are about to come."""
        self.decoder.unpack()

    def packed_weights(self) -> dict[str, PackedLinear | PackedExperts]:
        """What the kernels made of the weights, by the names of the modules that hold it."""
        held = {name: getattr(module, "packed", None) for name, module in self.named_modules()}
        return {name: packed for name, packed in held.items() if packed is not None}

    def _rotations(self, positions: Tensor) -> Rotations:
        everywhere, local = self.rotary_embedding, self.local_rotary_embedding
        return Rotations(
            everywhere.rotation_at(positions) if everywhere else None, local.rotation_at(positions) if local else None
        )
