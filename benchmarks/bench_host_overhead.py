"""Time per step that the host spends around the model: everything but its forward pass and the sampler.

First the engine with a model that costs nothing, per hop; then the host's share in whole steps of a real model. What
the backend takes to plan attention is the host's too, and shown beside it, since each backend does it in its own way.
Everything is the engine as users run it, every row streaming.

    python benchmarks/bench_host_overhead.py [--rows 1 16 64] [--steps 300] [--model FOLDER] [--threads 2]
"""

import argparse
import os
import statistics
import time
from typing import Any

import torch

from kilotron.apis.assembly import assemble
from kilotron.apis.llm import MegatronLLM
from kilotron.config import InferenceConfig
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.transformer_config import TransformerConfig
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer

VOCAB_SIZE = 259
BUDGET_MS = {64: 1.0, 256: 3.0}
PROMPT = [(7 * index) % 200 for index in range(16)]
NUM_WARMUPS = 10
HOPS = ("plan", "prepare", "end", "resolve", "publish")


class PhaseClock:
    """Adds up the time spent in some of an engine's calls."""

    def __init__(self, engine: DynamicInferenceEngine) -> None:
        self.seconds: dict[str, float] = {}
        watched: list[tuple[Any, str, str]] = [
            (engine, "step", "step"),
            (engine.scheduler, "plan_step", "plan"),
            (engine.context, "prepare_batch", "prepare"),
            (engine.context._kernels, "plan_attention", "plan_attention"),
            (engine.controller, "generate_step", "generate"),
            (engine.controller.inference_wrapped_model, "run_one_forward_step", "run"),
            (engine.controller, "sample_rows", "sample"),
            (engine, "_update_generation_status", "end"),
            (engine.scheduler, "resolve_step", "resolve"),
            (engine, "_publish", "publish"),
        ]
        for owner, method, phase in watched:
            self._watch(owner, method, phase)

    def _watch(self, owner: Any, method: str, phase: str) -> None:
        call = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

        setattr(owner, method, timed)


def build_free_engine(num_rows: int) -> DynamicInferenceEngine:
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


def measure(
    engine: DynamicInferenceEngine, num_rows: int, num_steps: int, params: SamplingParams
) -> dict[str, list[float]]:
    """Microseconds per step and phase, all rows decoding."""
    for _ in range(num_rows):
        engine.add_request(engine.intake.build(PROMPT, params), listener=lambda request, item: None)
    for _ in range(NUM_WARMUPS):
        engine.step()
    clock = PhaseClock(engine)
    samples: dict[str, list[float]] = {}
    for _ in range(num_steps):
        clock.seconds = {}
        engine.step()
        for phase, seconds in clock.seconds.items():
            samples.setdefault(phase, []).append(seconds * 1e6)
    samples["host"] = [
        step - run - sample
        for step, run, sample in zip(samples["step"], samples["run"], samples["sample"], strict=True)
    ]
    return samples


def print_free_model(rows: list[int], num_steps: int) -> None:
    """Where the host's own time goes."""
    params = SamplingParams(num_tokens_to_generate=3000, temperature=0.0, stop_words=["###"], streaming=True)
    print(f"a model that costs nothing, median microseconds per step of {num_steps}; the fastest tenth in brackets")
    print(f"{'rows':>5s}" + "".join(f"{name:>16s}" for name in (*HOPS, "sample", "host", "plan_attention")))
    for num_rows in rows:
        engine = build_free_engine(num_rows)
        samples = measure(engine, num_rows, num_steps, params)
        engine.close()
        cells = [f"{spread(samples[name]):>16s}" for name in (*HOPS, "sample", "host", "plan_attention")]
        budget = BUDGET_MS.get(num_rows)
        print(f"{num_rows:5d}" + "".join(cells) + (f"   host's budget {budget * 1e3:.0f}" if budget else ""))


def print_shares(model: str | None, rows: list[int], num_steps: int, num_threads: int) -> None:
    """How much of whole steps is the host's."""
    params = SamplingParams(num_tokens_to_generate=900, temperature=0.0, ignore_eos=True, streaming=True)
    print(f"\n{model or 'the bundled model'}, {num_threads} threads, medians of {num_steps} steps, microseconds")
    print(f"{'rows':>5s}{'step':>10s}{'host':>8s}{'share':>9s}{'plan_attention':>16s}{'share without':>15s}")
    for num_rows in rows:
        with MegatronLLM(model, num_threads=num_threads, buffer_size_gb=1.0, max_requests=num_rows) as llm:
            samples = measure(llm.engine, num_rows, num_steps, params)
        step, host, planned = (statistics.median(samples[name]) for name in ("step", "host", "plan_attention"))
        without = 100 * (host - planned) / step
        print(f"{num_rows:5d}{step:10.0f}{host:8.0f}{100 * host / step:7.2f} %{planned:16.0f}{without:13.2f} %")


def spread(values: list[float]) -> str:
    """Median, and what one in ten stays below: on a busy machine the better guess of what it costs."""
    return f"{statistics.median(values):.0f} ({statistics.quantiles(values, n=10)[0]:.0f})"


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", help="checkpoint folder for the second table instead of the bundled model")
    parser.add_argument("--threads", type=int, help="of the second table; 1 for the bundled model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_free_model(arguments.rows, arguments.steps)
    threads = arguments.threads or (os.cpu_count() or 1 if arguments.model else 1)
    steps = min(arguments.steps, 20) if arguments.model else arguments.steps
    print_shares(arguments.model, arguments.rows, steps, threads)
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
