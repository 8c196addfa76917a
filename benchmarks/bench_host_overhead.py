"""Time per step that the host spends around the model: plan, prepare, sample, resolve and publish.

A model that costs nothing stands in for the real one; everything else is the engine as users run it, on the
reference backend, every row streaming.

    python benchmarks/bench_host_overhead.py [--rows 64 256] [--steps 300]
"""

import argparse
import statistics
import time
from typing import Any

import torch

from kilotron.apis.assembly import assemble
from kilotron.config import InferenceConfig
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.transformer_config import TransformerConfig
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer

VOCAB_SIZE = 259
BUDGET_MS = {64: 1.0, 256: 3.0}


class PhaseClock:
    """Adds up the time spent in some of an engine's calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, method: str, phase: str) -> None:
        """Times a method from now on."""
        call = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

        setattr(owner, method, timed)


def build_engine(num_rows: int) -> DynamicInferenceEngine:
    """An engine whose model gives one prepared row of logits to everybody."""
    config = TransformerConfig(
        num_layers=28,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=1,
        num_query_groups=1,
        kv_channels=8,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=4096,
    )
    model = GPTModel(config, ReferenceBackend())
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.zeros(parameter.shape), requires_grad=False))
    options = InferenceConfig(max_requests=num_rows, buffer_size_gb=0.5, max_tokens=8192)
    engine = assemble(model, ByteTokenizer(), options).engine
    logits = torch.zeros(num_rows, VOCAB_SIZE)
    logits[:, ord("a")] = 1.0
    engine.controller.inference_wrapped_model.run_one_forward_step = lambda batch: logits[: len(batch.logits_index)]
    return engine


def measure(num_rows: int, num_steps: int, params: SamplingParams) -> dict[str, list[float]]:
    """Milliseconds per step and phase, all rows decoding."""
    engine = build_engine(num_rows)
    for _ in range(num_rows):
        request = engine.intake.build("hello, this is a prompt of some forty bytes", params)
        engine.add_request(request, listener=lambda request, item: None)
    for _ in range(20):
        engine.step()
    clock = PhaseClock()
    watched: list[tuple[Any, str, str]] = [
        (engine.scheduler, "plan_step", "plan"),
        (engine.context, "prepare_batch", "prepare"),
        (engine.controller, "generate_step", "sample (model free)"),
        (engine.controller, "update_generation_status", "resolve"),
        (engine.scheduler, "resolve_step", "resolve"),
        (engine, "_publish", "publish"),
    ]
    for owner, method, phase in watched:
        clock.watch(owner, method, phase)
    samples: dict[str, list[float]] = {}
    for _ in range(num_steps):
        clock.seconds = {}
        engine.step()
        for phase, seconds in clock.seconds.items():
            samples.setdefault(phase, []).append(seconds * 1e3)
    engine.close()
    return samples


def main() -> None:
    """Prints a table per number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = SamplingParams(num_tokens_to_generate=3000, temperature=0.0, stop_words=["###"], streaming=True)
    for num_rows in arguments.rows:
        samples = measure(num_rows, arguments.steps, params)
        counted = [
            sum(parts) for parts in zip(*(samples[p] for p in ("plan", "prepare", "resolve", "publish")), strict=True)
        ]
        budget = BUDGET_MS.get(num_rows)
        print(f"\n{num_rows} rows decoding, {arguments.steps} steps, milliseconds per step")
        print(f"  {'':22s} {'median':>8s} {'mean':>8s}")
        for phase, values in [*samples.items(), ("all but sample", counted)]:
            print(f"  {phase:22s} {statistics.median(values):8.3f} {statistics.fmean(values):8.3f}")
        print(f"  budget for all but sample: {budget:g}" if budget else "")


if __name__ == "__main__":
    main()
