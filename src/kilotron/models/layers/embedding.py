"""LanguageModelEmbedding: token ids to hidden states, plus learned positions where a model has them."""

import torch
from torch import Tensor

from kilotron.kernels.interface import KernelBackend
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import empty_parameter
from kilotron.models.transformer_config import TransformerConfig


class EmbeddingTable(Layer):
    """One table of vectors."""

    def __init__(self, kernels: KernelBackend, rows: int, size: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight = empty_parameter(rows, size)

    def forward(self, ids: Tensor) -> Tensor:
        """[T] int64 -> [T, size]"""
        return self.kernels.embedding(ids, self.weight)


class LanguageModelEmbedding(Layer):
    """Word embeddings, scaled (Gemma) or with learned positions (GPT-2) where the config says so."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend) -> None:
        super().__init__()
        self.multiplier = config.embedding_multiplier
        self.word_embeddings = EmbeddingTable(kernels, config.vocab_size, config.hidden_size)
        self.position_embeddings: EmbeddingTable | None = None
        if config.position_embedding_type == "learned":
            self.position_embeddings = EmbeddingTable(kernels, config.max_position_embeddings, config.hidden_size)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """[T] int64 twice -> [T, hidden]"""
        hidden = self.word_embeddings(token_ids)
        if self.multiplier != 1.0:
            # Rounded first: the models were trained with the multiplier in their own dtype.
            hidden = hidden * torch.tensor(self.multiplier, dtype=hidden.dtype).item()
        if self.position_embeddings is not None:
            hidden = hidden + self.position_embeddings(positions)
        return hidden
