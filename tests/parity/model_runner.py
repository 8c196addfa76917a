"""ModelRunner: drives a GPTModel without an engine, by building each step's InferenceBatch by hand."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.kernels.interface import AttentionRows, KVShape
from kilotron.kernels.registry import choose_backend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.quantization.stored_weights import NamedTensors
from kilotron.models.registry import read_transformer_config
from kilotron.models.weight_loading import load_weights

BLOCK_SIZE = 16


@dataclass
class Row:
    """One sequence under way."""

    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)


class ModelRunner:
    """A loaded model with a small paged cache. Blocks are handed out in an order that is not that of positions."""

    def __init__(self, model: GPTModel, dtype: torch.dtype, num_blocks: int = 64) -> None:
        self.model = model
        config = model.config
        self.kv_layers = model.kernels.allocate_kv(
            KVShape(
                num_layers=config.num_layers,
                num_blocks=num_blocks,
                block_size=BLOCK_SIZE,
                num_query_groups=config.num_query_groups,
                kv_channels=config.kv_channels,
                dtype=dtype,
            )
        )
        self.rows: dict[int, Row] = {}
        self.free_blocks = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(1)).add(1).tolist()

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        max_sequence_length: int | None = None,
        kernels: str = "reference",
    ) -> "ModelRunner":
        """The model saved in `folder`, on the named kernels."""
        return cls.of(HuggingFaceCheckpoint.open(folder), dtype, max_sequence_length, kernels)

    @classmethod
    def of(
        cls,
        checkpoint: NamedTensors,
        dtype: torch.dtype = torch.float32,
        max_sequence_length: int | None = None,
        kernels: str = "reference",
    ) -> "ModelRunner":
        """The model of an open checkpoint, on the named kernels."""
        backend = choose_backend(kernels, "cpu").backend
        model = GPTModel(read_transformer_config(checkpoint.config), backend, max_sequence_length)
        assert load_weights(model, checkpoint, dtype) == []
        return cls(model, dtype)

    def step(self, tokens_of_row: dict[int, list[int]]) -> list[Tensor]:
        """One step over several rows; the logits of all their new tokens, [new tokens, vocabulary] for each row."""
        rows = [self._extended_row(number, tokens) for number, tokens in tokens_of_row.items()]
        lengths = [len(tokens) for tokens in tokens_of_row.values()]
        hidden = self.model(self._batch(rows, list(tokens_of_row.values())))
        for row, length in zip(rows, lengths, strict=True):
            row.num_computed += length
        return list(self.model.compute_logits(hidden).split(lengths))

    def run_in_chunks(self, number: int, tokens: list[int], chunk_sizes: list[int]) -> Tensor:
        """The logits of one row's tokens, computed in chunks of the given sizes, over and over."""
        logits, start, turn = [], 0, 0
        while start < len(tokens):
            size = chunk_sizes[turn % len(chunk_sizes)]
            logits += self.step({number: tokens[start : start + size]})
            start, turn = start + size, turn + 1
        return torch.cat(logits)

    def _extended_row(self, number: int, tokens: list[int]) -> Row:
        row = self.rows.setdefault(number, Row())
        while len(row.block_ids) * BLOCK_SIZE < row.num_computed + len(tokens):
            block_id = self.free_blocks.pop()
            self.model.kernels.clear_kv_blocks(self.kv_layers, [block_id])
            row.block_ids.append(block_id)
        return row

    def _batch(self, rows: list[Row], tokens: list[list[int]]) -> InferenceBatch:
        table = np.zeros((len(rows), max(len(row.block_ids) for row in rows)), dtype=np.int64)
        for line, row in zip(table, rows, strict=True):
            line[: len(row.block_ids)] = row.block_ids
        spans = [range(row.num_computed, row.num_computed + len(new)) for row, new in zip(rows, tokens, strict=True)]
        slots = [
            row.block_ids[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for row, span in zip(rows, spans, strict=True)
            for position in span
        ]
        attention_rows = AttentionRows(
            num_computed=np.array([row.num_computed for row in rows]),
            num_new=np.array([len(new) for new in tokens]),
            block_table=table,
        )
        return InferenceBatch(
            token_ids=torch.tensor([token for new in tokens for token in new]),
            positions=torch.tensor([position for span in spans for position in span]),
            kv_slots=torch.tensor(slots),
            kv_layers=self.kv_layers,
            attention=self.model.kernels.plan_attention(attention_rows, BLOCK_SIZE),
            logits_index=torch.arange(len(slots)),
            num_samples=0,
        )
