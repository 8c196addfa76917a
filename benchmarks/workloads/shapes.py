"""The two model shapes, and what a step of them must at least read and compute: the counts behind "share of the limit".

A step takes no less time than its bytes need at the measured bandwidth, nor than its operations at the measured peak.
Weights are read once per step, keys and values of each row once; norms, activations and the embedding's row are left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workloads.definitions import Request

KV_BYTES_PER_NUMBER = 2


class MachineRates(NamedTuple):
    """What the machine can do at most, measured."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class Shape:
    """A dense decoder with tied embeddings, in the terms of its config.json."""

    name: str
    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    rope_base: float

    @property
    def body_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.ffn_size)

    @property
    def output_weights(self) -> int:
        """Numbers in the output layer, which is the embedding."""
        return self.hidden_size * self.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * KV_BYTES_PER_NUMBER

    @property
    def attention_flops_per_pair(self) -> int:
        """Of one token that looks at one other: scores and weighted sum, multiplication and addition."""
        return self.num_layers * self.num_heads * self.head_dim * 4

    def weight_bytes(self, weight_bits: float) -> float:
        """What a step reads of the weights."""
        return (self.body_weights + self.output_weights) * weight_bits / 8

    def prefill_seconds(self, requests: Sequence[Request], rates: MachineRates, weight_bits: float = 16) -> float:
        """The least time to compute all prompts and one row of logits for each, what they share once."""
        shared = _shared_length([request.prompt for request in requests])
        flops = self._prompt_flops(0, shared)
        for request in requests:
            flops += self._prompt_flops(shared, len(request.prompt)) + 2 * self.output_weights
        return max(flops / rates.flops_per_s, self.weight_bytes(weight_bits) / rates.bytes_per_s)

    def decode_seconds(self, requests: Sequence[Request], rates: MachineRates, weight_bits: float = 16) -> float:
        """The least time of all steps after the first tokens, every request in the batch until it ends."""
        total_s = 0.0
        for step in range(1, max(request.num_tokens for request in requests)):
            contexts = [len(request.prompt) + step for request in requests if request.num_tokens > step]
            num_bytes = self.weight_bytes(weight_bits) + sum(contexts) * self.kv_bytes_per_token
            flops = len(contexts) * 2 * (self.body_weights + self.output_weights)
            flops += sum(contexts) * self.attention_flops_per_pair
            total_s += max(num_bytes / rates.bytes_per_s, flops / rates.flops_per_s)
        return total_s

    def _prompt_flops(self, start: int, end: int) -> float:
        pairs = (end * (end + 1) - start * (start + 1)) / 2
        return (end - start) * 2 * self.body_weights + pairs * self.attention_flops_per_pair


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "qwen3", 64, 2, 4, 2, 32, 128, 16_384, 1e6),
        Shape("qwen3-0.6b", "qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, 1e6),
        Shape("llama-1b", "llama", 2048, 16, 32, 8, 64, 8192, 128_256, 5e5),
    )
}


def limit_of(figure: str, shape: Shape, requests: Sequence[Request], rates: MachineRates, bits: float) -> float | None:
    """What a figure of a run can be at best; None where the machine's limits say nothing.

    A whole run is taken as all prompts first, then the steps: no bound in the strict sense, but the plainest schedule.
    """
    num_outputs = sum(request.num_tokens for request in requests)
    prefill_s = shape.prefill_seconds(requests, rates, bits)
    decode_s = shape.decode_seconds(requests, rates, bits)
    match figure:
        case "prefill_tokens_per_s":
            return sum(len(request.prompt) for request in requests) / prefill_s
        case "decode_tokens_per_s":
            return (num_outputs - len(requests)) / decode_s
        case "output_tokens_per_s":
            return num_outputs / (prefill_s + decode_s)
    return None


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens at which all prompts begin alike; a single prompt shares nothing."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    return next((index for index, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
