"""StaticInferenceContext: the KV cache of a static batch, one contiguous region for each row.

Row (slot) s has the blocks from `1 + s * blocks_per_row` on. It is the paged cache with the pages in order: everything
that works on block tables works here, sharing between the beams of a search included.
"""

from typing import Any, Self

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.errors import ConfigError
from kilotron.kernels.interface import KernelBackend, KVShape
from kilotron.models.inference_batch import InferenceBatch
from kilotron.scheduling.step_plan import StepPlan


class StaticInferenceContext(DynamicInferenceContext):
    """A batch of at most `max_batch_size` rows of at most `max_sequence_length` tokens each.

    Memory is taken when an engine is built around it (`attach`): before that nobody knows the model.

    Args:
        max_batch_size: rows.
        max_sequence_length: most tokens of a row, prompt and output.
        block_size: tokens in a block.

    Raises:
        ConfigError: a size is not a whole number above 0.
    """

    def __init__(self, max_batch_size: int, max_sequence_length: int, *, block_size: int = 32) -> None:
        check_size("max_batch_size", max_batch_size)
        check_size("max_sequence_length", max_sequence_length)
        check_size("block_size", block_size)
        self.max_batch_size = max_batch_size
        self.max_sequence_length = max_sequence_length
        self.block_size = block_size
        self.max_encoder_length = 0
        """Most tokens of a row's encoder input; an engine sets it for a model with an encoder."""
        self.sequence_len_offset = 0
        """Tokens that the longest row of the last step has in the cache: Megatron's counter."""
        self.batch_size_offset = 0
        """Where the batch at hand begins among the rows: always 0, since a batch is never split."""
        self._is_attached = False

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """With the sizes that an `InferenceWrapperConfig` names.

        Raises:
            ConfigError: it does not name them.
        """
        return cls(config.inference_max_requests, config.inference_max_seq_length)

    @property
    def blocks_per_row(self) -> int:
        """Blocks of one row's region."""
        return -(-self.max_sequence_length // self.block_size) + -(-self.max_encoder_length // self.block_size)

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole cache, the null block included."""
        return 1 + self.max_batch_size * self.blocks_per_row

    def is_static_batching(self) -> bool:
        """True."""
        return True

    def is_dynamic_batching(self) -> bool:
        """False."""
        return False

    def attach(self, shape: KVShape, kernels: KernelBackend) -> None:
        """Takes the memory; `shape` is the model's, for `num_blocks` blocks of `block_size` tokens.

        Raises:
            ConfigError: it belongs to an engine already.
        """
        if self._is_attached:
            raise ConfigError("this inference context belongs to an engine already; make one for each engine")
        super().__init__(
            shape,
            kernels,
            max_requests=self.max_batch_size,
            max_sequence_length=self.max_sequence_length,
            max_encoder_length=self.max_encoder_length,
        )
        self._is_attached = True

    def prepare_batch(self, plan: StepPlan) -> InferenceBatch:
        """See `DynamicInferenceContext`; counts where the sequences end."""
        batch = super().prepare_batch(plan)
        self.sequence_len_offset = max(row.start + len(row.token_ids) for row in plan.rows)
        return batch

    def __str__(self) -> str:
        return (
            f"StaticInferenceContext(max_batch_size={self.max_batch_size}, "
            f"max_sequence_length={self.max_sequence_length}, sequence_len_offset={self.sequence_len_offset}, "
            f"batch_size_offset={self.batch_size_offset})"
        )


def check_size(name: str, value: object) -> None:
    """
    Raises:
        ConfigError: it is not a whole number above 0.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number above 0, not {value!r}")
