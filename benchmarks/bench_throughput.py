"""Throughput of kilotron and of transformers' batched `generate`: same model, same prompts, interleaved in one run.

The model has the shape of Qwen3-0.6B and random bfloat16 weights; prompts are random token ids. Each system runs the
same requests in turn, several times; the figure is the median of output tokens per second, and their ratio.

    python benchmarks/bench_throughput.py [--requests 16] [--runs 3] [--mixed]
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from kilotron.apis.llm import MegatronLLM
from kilotron.sampling_params import SamplingParams

SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


class Job(NamedTuple):
    """One request."""

    prompt: list[int]
    num_tokens: int


def make_model(folder: Path) -> None:
    """Writes the random model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)


def make_jobs(count: int, run: int, *, mixed: bool) -> list[Job]:
    """Fresh ids in every run; the same lengths in all."""
    lengths = random.Random(1234)
    ids = random.Random(run)
    jobs = []
    for _ in range(count):
        prompt, output = (lengths.randint(32, 256), lengths.randint(32, 128)) if mixed else (128, 64)
        jobs.append(Job([ids.randint(3, 15999) for _ in range(prompt)], output))
    return jobs


def run_kilotron(llm: MegatronLLM, jobs: list[Job]) -> None:
    """All jobs at once, each stopping at its own length."""
    params = [SamplingParams(num_tokens_to_generate=job.num_tokens, temperature=0.0, ignore_eos=True) for job in jobs]
    for request, job in zip(llm.generate([job.prompt for job in jobs], params), jobs, strict=True):
        if len(request.generated_tokens) != job.num_tokens:
            raise RuntimeError(f"{len(request.generated_tokens)} tokens instead of {job.num_tokens}: {request.error}")


@torch.inference_mode()
def run_transformers(model: Any, jobs: list[Job]) -> None:
    """One left-padded batch that runs until its longest request is done, as `generate` does."""
    width = max(len(job.prompt) for job in jobs)
    ids = torch.full((len(jobs), width), 2)
    mask = torch.zeros(len(jobs), width, dtype=torch.long)
    for row, job in enumerate(jobs):
        ids[row, width - len(job.prompt) :] = torch.tensor(job.prompt)
        mask[row, width - len(job.prompt) :] = 1
    most = max(job.num_tokens for job in jobs)
    model.generate(ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=2)


def main() -> None:
    """Runs both in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mixed", action="store_true", help="prompts of 32-256 and outputs of 32-128 tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        rates: dict[str, list[float]] = {"kilotron": [], "transformers": []}
        with MegatronLLM(folder, buffer_size_gb=3.0) as ours:
            for run in range(arguments.runs + 1):
                jobs = make_jobs(arguments.requests, run, mixed=arguments.mixed)
                output = sum(job.num_tokens for job in jobs)
                for name, call in (
                    ("kilotron", lambda jobs=jobs: run_kilotron(ours, jobs)),
                    ("transformers", lambda jobs=jobs: run_transformers(theirs, jobs)),
                ):
                    start = time.perf_counter()
                    call()
                    if run > 0:  # the first run warms up
                        rates[name].append(output / (time.perf_counter() - start))
    kind = "mixed lengths" if arguments.mixed else "128 + 64 tokens each"
    print(f"{arguments.requests} requests, {kind}, {arguments.runs} runs, {arguments.threads} threads")
    for name, values in rates.items():
        print(f"  {name:14s} {spread(values)} output tokens/s")
    print(f"  {'ratio':14s} {spread([a / b for a, b in zip(*rates.values(), strict=True)])}")
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):8.2f} [{min(values):.2f} - {max(values):.2f}]"


if __name__ == "__main__":
    main()
