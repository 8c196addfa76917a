"""What tests put at the seams: a tiny random model without files, a model whose tokens are known beforehand, builders.

Everything is seeded: equal calls give equal models.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kilotron.apis.llm import MegatronLLM
from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.request_intake import RequestIntake, RequestLimits
from kilotron.kernels.interface import KernelBackend, KVShape, QuantizedWeight
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.model_inference_wrappers.abstract_model_inference_wrapper import AbstractModelInferenceWrapper
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.encoder_decoder_model import EncoderDecoderModel
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.experts import Experts
from kilotron.models.layers.linear import Linear
from kilotron.models.quantization.rounding import Rounding
from kilotron.models.transformer_config import TransformerConfig
from kilotron.sampling.sampler import Sampler
from kilotron.sampling.sampling_table import SamplingTable
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_planner import SchedulerLimits
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.tokenization import ByteTokenizer, Tokenizer

Model = TypeVar("Model", bound=GPTModel)

VOCAB_SIZE = 259  # the byte tokenizer's
BOS_ID = 256
EOS_ID = 257

TINY_CONFIG: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
}
# Small enough that a test is fast, with blocks small enough that sequences have several.
TINY_OPTIONS: dict[str, Any] = {"block_size_tokens": 8, "max_requests": 16, "random_seed": 0}


def make_model(
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    kernels: KernelBackend | None = None,
    rounding: Rounding | None = None,
    **changes: Any,
) -> GPTModel:
    """A tiny model with random weights, on the reference backend; `changes` are fields of `TransformerConfig`.

    `rounding` quantizes what loading would quantize.
    """
    config = TransformerConfig(**TINY_CONFIG | {"params_dtype": dtype} | changes)
    return fill_weights(GPTModel(config, kernels or ReferenceBackend()), dtype, seed, rounding)


def make_encoder_decoder(**changes: Any) -> EncoderDecoderModel:
    """The same with an encoder of one layer in front and T5's relative positions."""
    own = EncoderDecoderConfig(
        num_encoder_layers=1,
        num_encoder_attention_heads=4,
        encoder_ffn_hidden_size=40,
        decoder_start_token_id=BOS_ID,
    )
    fields = {"encoder_decoder": own, "position_embedding_type": "relative", "num_query_groups": 4}
    model = EncoderDecoderModel(TransformerConfig(**TINY_CONFIG | fields | changes), ReferenceBackend())
    return fill_weights(model)


def fill_weights(
    model: Model, dtype: torch.dtype = torch.float32, seed: int = 0, rounding: Rounding | None = None
) -> Model:
    """Random weights."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.randn(parameter.shape, generator=generator) * 0.3
            is_norm = name == "weight" and parameter.ndim == 1
            kept = torch.float32 if name in getattr(module, "float32_parameters", ()) else dtype
            setattr(module, name, nn.Parameter((values + is_norm).to(kept), requires_grad=False))
    for module in model.modules():
        if isinstance(module, Linear | Experts):
            if rounding is not None:
                _round(module, rounding)
            module.pack()
    model.pack()
    model.tie_output_layer()
    return model


def _round(module: Linear | Experts, rounding: Rounding) -> None:
    if isinstance(module, Experts):
        for stack in (module.linear_fc1, module.linear_fc2):
            stack.quantized = [rounding.quantize(weight, weight.dtype, weight.device) for weight in stack.weight]
    elif module.can_round:
        rounded = rounding.quantize(module.weight, module.weight.dtype, module.weight.device)
        module.quantized = rounded if isinstance(rounded, QuantizedWeight) else None


def make_llm(model: GPTModel | None = None, tokenizer: Tokenizer | None = None, **options: Any) -> MegatronLLM:
    """A tiny random model behind the synchronous API, with the byte tokenizer."""
    return MegatronLLM(model or make_model(), tokenizer or ByteTokenizer(), **TINY_OPTIONS | options)


def kv_gigabytes(num_blocks: int, block_size: int = TINY_OPTIONS["block_size_tokens"], itemsize: int = 4) -> float:
    """`buffer_size_gb` for so many blocks of a tiny model, the null block not counted."""
    config = TransformerConfig(**TINY_CONFIG)
    per_token = 2 * config.num_layers * config.num_query_groups * config.kv_channels * itemsize
    return ((num_blocks + 1) * block_size * per_token + 1) / 2**30


# (token, its position) -> the token that follows.
Script = Callable[[int, int], int]


def count_up(token_id: int, _position: int) -> int:
    """a -> b -> c ... z -> end of sequence."""
    return EOS_ID if token_id == ord("z") else (token_id + 1) % 256


def write_out(text: str, prompt_length: int) -> Script:
    """Writes this text after a prompt of that length, then ends."""
    tokens = [*text.encode(), EOS_ID]
    return lambda _token_id, position: tokens[min(position + 1 - prompt_length, len(tokens) - 1)]


class ScriptedWrapper(AbstractModelInferenceWrapper):
    """A model without maths: a token's successor has logit 5, each other token a logit of its own below 1."""

    def __init__(self, script: Script = count_up) -> None:
        self.script = script
        self.num_steps = 0

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        self.num_steps += 1
        tokens, positions = batch.token_ids[batch.logits_index], batch.positions[batch.logits_index]
        follow = [self.script(*pair) for pair in zip(tokens.tolist(), positions.tolist(), strict=True)]
        logits = (torch.arange(VOCAB_SIZE) / VOCAB_SIZE).repeat(len(follow), 1)
        logits[torch.arange(len(follow)), follow] = 5.0
        return logits


class FailingWrapper(ScriptedWrapper):
    """Raises whenever a batch holds the poisonous token."""

    def __init__(self, poison: int = ord("!"), error: BaseException | None = None) -> None:
        super().__init__()
        self.poison = poison
        self.error = error or RuntimeError("the device is on fire")

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        if self.poison in batch.token_ids.tolist():
            raise self.error
        return super().run_one_forward_step(batch)


def make_scripted_engine(
    wrapper: AbstractModelInferenceWrapper | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    num_blocks: int = 65,
    max_sequence_length: int = 64,
    eos_ids: Sequence[int] = (EOS_ID,),
    **limits: Any,
) -> DynamicInferenceEngine:
    """An engine of real parts around a scripted model; `limits` are fields of `SchedulerLimits`."""
    all_limits = {
        "block_size": 8,
        "max_requests": 16,
        "max_tokens": 256,
        "max_logits_tokens": 512,
        "max_waiting_requests": 100_000,
        "aging_steps": 256,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
    } | limits
    wrapper = wrapper or ScriptedWrapper()
    kernels = ReferenceBackend()
    shape = KVShape(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=all_limits["block_size"],
        num_query_groups=1,
        kv_channels=1,
        dtype=torch.float32,
    )
    max_requests = all_limits["max_requests"]
    context = DynamicInferenceContext(
        shape, kernels, max_requests=max_requests, max_sequence_length=max_sequence_length
    )
    table = SamplingTable(max_requests=max_requests, vocab_size=wrapper.vocab_size, device=kernels.device)
    sampler = Sampler(table, kernels)
    controller = TextGenerationController(wrapper, tokenizer or ByteTokenizer(), table=table, sampler=sampler)
    request_limits = RequestLimits(
        vocab_size=wrapper.vocab_size, max_sequence_length=max_sequence_length, eos_ids=frozenset(eos_ids)
    )
    intake = RequestIntake(controller, request_limits, random_seed=0)
    scheduler = Scheduler(SchedulerLimits(**all_limits), num_blocks)
    return DynamicInferenceEngine(controller, context, scheduler=scheduler, intake=intake)


def assert_nothing_is_left(engine: DynamicInferenceEngine) -> None:
    """No request, slot, listener or owned block remains, and the ledger balances."""
    assert engine.scheduler.check_ledger() == []
    assert engine.scheduler.num_unfinished == engine.num_unfinished_requests == 0
    assert engine.scheduler.allocator.num_owned == 0
    assert not engine._listeners
    assert not engine.controller._progress
    assert not engine.scheduler._expected
