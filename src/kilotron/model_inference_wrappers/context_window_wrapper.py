"""ContextWindowWrapper: serves a model that takes whole sequences, such as any torch module, through Megatron's hooks.

The paged cache holds the sequences' token ids in place of keys and values. So a row's tokens are found by its block
table like any other model's keys, and prefix sharing, preemption and suspension need not know the difference.
"""

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kilotron.errors import ConfigError
from kilotron.kernels.interface import AttentionRows, KVShape
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.model_inference_wrappers.abstract_model_inference_wrapper import AbstractModelInferenceWrapper
from kilotron.models.inference_batch import InferenceBatch


class WindowedModel(Protocol):
    """The three methods of Megatron's wrappers, and the size of the vocabulary.

    Or as they are since core 0.10, with a `prep_inference_input(prompts_tokens)` whose result becomes the first
    argument of `get_batch_for_context_window`; then `prep_model_for_inference()` is called once, without tokens.
    """

    @property
    def vocab_size(self) -> int:
        """Real tokens."""

    def prep_model_for_inference(self, prompts_tokens: Tensor) -> None:
        """Takes the sequence, [1, length] int64."""

    def get_batch_for_context_window(self, context_start_position: int, context_end_position: int) -> Any:
        """The model's input for these positions of the sequence; whatever `run_one_forward_step` takes."""

    def run_one_forward_step(self, inference_input: Any) -> Tensor:
        """Logits [1, window, padded vocabulary]; or [1, 1, padded vocabulary], of the window's last position, which is
        enough to generate but not to score prompts."""


class TokenHistoryBackend(ReferenceBackend):
    """Plain torch, but that rows are not prepared for attention: there is none."""

    def plan_attention(self, rows: AttentionRows, block_size: int) -> AttentionRows:  # type: ignore[override]
        """The rows as they are."""
        return rows


class ContextWindowWrapper(AbstractModelInferenceWrapper):
    """Runs a row's whole sequence through the model at each of its tokens.

    Each row is a batch of one and a window that starts at 0, so that nothing is padded and no row can change another's
    numbers. It costs a full forward pass per token; a model that is to be fast implements `run_one_forward_step(batch)`
    and keeps its keys and values in the engine's cache.
    """

    def __init__(self, windowed: WindowedModel) -> None:
        config = getattr(windowed, "inference_wrapper_config", None)
        super().__init__(windowed, config, getattr(windowed, "inference_context", None))
        self.windowed: Any = windowed
        self._prep_inference_input = getattr(windowed, "prep_inference_input", None)
        self._backend = TokenHistoryBackend()

    @property
    def vocab_size(self) -> int:
        """The model's."""
        vocab_size: int = self.windowed.vocab_size
        return vocab_size

    @property
    def kernels(self) -> TokenHistoryBackend:
        """Keeps token ids."""
        return self._backend

    @property
    def max_sequence_length(self) -> int | None:
        """The model's own, if it has such an attribute."""
        length: int | None = getattr(self.windowed, "max_sequence_length", None)
        return length

    @property
    def eos_ids(self) -> frozenset[int]:
        """The model's own, if it has such an attribute."""
        return frozenset(getattr(self.windowed, "eos_ids", ()))

    def cache_shape(self, num_blocks: int, block_size: int) -> KVShape:
        """One number per token: its id, in the place of a key."""
        return replace(super().cache_shape(num_blocks, block_size), dtype=torch.int64)

    def prep_model_for_inference(self, prompts_tokens: Tensor | None = None) -> None:
        """Prepares a model whose tokens come otherwise."""
        if self._prep_inference_input is not None:
            self.windowed.prep_model_for_inference()

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        """Logits of each row that needs some; rows of which only more prompt is taken in cost nothing."""
        rows: AttentionRows = batch.attention
        blocks = batch.kv_layers[0].keys.numbers[0, :, :, 0]  # [blocks, tokens of a block]
        blocks.view(-1)[batch.kv_slots] = batch.token_ids
        ends = np.cumsum(rows.num_new)
        wanted = batch.logits_index.numpy()
        row_of = np.searchsorted(ends, wanted, side="right")
        logits: dict[int, Tensor] = {}
        for row in np.unique(row_of).tolist():
            length = int(rows.num_computed[row] + rows.num_new[row])
            tokens = blocks[torch.from_numpy(rows.block_table[row])].reshape(-1)[:length]
            places = np.flatnonzero(row_of == row)
            # A token's distance from the end of its row is the same in the step and in the sequence.
            positions = torch.from_numpy(wanted[places] - ends[row] + length)
            logits |= dict(zip(places.tolist(), self._run(tokens, positions), strict=True))
        if not len(wanted):
            return torch.empty(0, self.vocab_size)
        return torch.stack([logits[place] for place in range(len(wanted))])

    def _run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """[length] ids -> [positions, padded vocabulary] float32"""
        length = len(tokens)
        logits = self.windowed.run_one_forward_step(self._window(tokens))
        is_last_enough = len(positions) == 1 and int(positions[0]) == length - 1
        if is_last_enough and logits.shape[:-1] == (1, 1):
            positions = torch.tensor([0])
        elif logits.shape[:-1] != (1, length):
            raise ConfigError(
                f"run_one_forward_step gave logits of shape {list(logits.shape)} for a window of {length} tokens; it "
                f"must be [1, {length}, at least {self.vocab_size}]"
            )
        if logits.shape[-1] < self.vocab_size:
            raise ConfigError(f"the model gave {logits.shape[-1]} logits for a vocabulary of {self.vocab_size}")
        return logits[0].float().to(self._backend.device)[positions]

    def _window(self, tokens: Tensor) -> Any:
        """The model's input for the whole of a sequence."""
        if self._prep_inference_input is not None:
            prepared = self._prep_inference_input(tokens[None])
            return self.windowed.get_batch_for_context_window(prepared, 0, len(tokens))
        self.windowed.prep_model_for_inference(tokens[None])
        return self.windowed.get_batch_for_context_window(0, len(tokens))


def as_batch_wrapper(wrapper: Any) -> AbstractModelInferenceWrapper:
    """The wrapper as an engine runs it: one with `get_batch_for_context_window` is put into a `ContextWindowWrapper`.

    Raises:
        ConfigError: it has neither that nor is it an `AbstractModelInferenceWrapper`.
    """
    if hasattr(wrapper, "get_batch_for_context_window"):
        return ContextWindowWrapper(wrapper)
    if not isinstance(wrapper, AbstractModelInferenceWrapper):
        raise ConfigError(
            "inference_wrapped_model must be an AbstractModelInferenceWrapper or have get_batch_for_context_window, "
            f"not {type(wrapper).__name__}; put a GPTModel into a GPTInferenceWrapper"
        )
    return wrapper
