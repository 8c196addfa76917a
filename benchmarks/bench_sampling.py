"""How long one sampling call takes, per kind of parameters, next to the least that torch itself needs.

    python benchmarks/bench_sampling.py [--rows 256] [--vocab 128256] [--threads 1] [--decay 1.5] [--device cpu]
        [--kernels auto]

The first line is the host's share: all rows greedy over a vocabulary so small that the tensor work is next to nothing.
Ratios are taken against `log_softmax` + `multinomial` on the same logits, measured in the same run.
"""

import argparse
import time
from collections.abc import Callable

import torch

from kilotron.kernels.interface import KernelBackend
from kilotron.kernels.registry import choose_backend
from kilotron.sampling.log_probs import score_tokens
from kilotron.sampling.sampler import Sampler
from kilotron.sampling.sampling_table import SamplingTable
from kilotron.sampling_params import SamplingParams

CASES = {
    "greedy": {"temperature": 0},
    "temperature": {},
    "min_p 0.05": {"min_p": 0.05},
    "top_k 40": {"top_k": 40},
    "top_k 1000": {"top_k": 1000},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 40, top_p 0.9": {"top_k": 40, "top_p": 0.9},
    "greedy, penalties (1k seen)": {"temperature": 0, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
    "greedy, log-prob": {"temperature": 0, "return_log_probs": True},
    "greedy, log-prob, top 5": {"temperature": 0, "return_log_probs": True, "top_n_logprobs": 5},
}


def measure_ms(function: Callable[[], object], device: torch.device, least_s: float = 1.0) -> float:
    """Median of at least three calls after one to warm up."""
    times: list[float] = []
    function()
    while len(times) < 3 or sum(times) < least_s:
        start = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2] * 1e3


def make_sampler(rows: int, vocab: int, kernels: KernelBackend, params: SamplingParams) -> Sampler:
    table = SamplingTable(max_requests=rows, vocab_size=vocab, device=kernels.device)
    seen = range(min(vocab, 1000))
    for slot in range(rows):
        table.admit(slot, params, seed=slot, prompt_ids=seen, generated_ids=(), end_ids=frozenset({0}), bad_word_ids=())
    return Sampler(table, kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decay", type=float, default=1.5, help="probability falls with this power of the rank")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    kernels = choose_backend(arguments.kernels, arguments.device).backend
    slots = list(range(arguments.rows))
    positions = [1000] * arguments.rows

    small = torch.randn(arguments.rows, 8, device=device)
    sampler = make_sampler(arguments.rows, 8, kernels, SamplingParams(temperature=0))
    host_ms = measure_ms(lambda: sampler.sample(small, slots, positions), device)
    where = f"{device}, kernels {kernels.name}"
    print(f"{arguments.rows} rows, {arguments.vocab} tokens, {arguments.threads} thread(s), {where}")
    print(f"{'host share of a greedy call':32}{host_ms:10.3f} ms")

    torch.manual_seed(0)
    ranks = torch.rand(arguments.rows, arguments.vocab, device=device).argsort(1) + 1
    logits = ranks.log().mul_(-arguments.decay)
    yardstick_ms = measure_ms(lambda: torch.log_softmax(logits, -1).exp().multinomial(1).tolist(), device)
    print(f"{'log_softmax + multinomial':32}{yardstick_ms:10.2f} ms")
    for name, fields in CASES.items():
        sampler = make_sampler(arguments.rows, arguments.vocab, kernels, SamplingParams(**fields))
        spent_ms = measure_ms(lambda sampler=sampler: sampler.sample(logits, slots, positions), device)
        print(f"{name:32}{spent_ms:10.2f} ms  {spent_ms / yardstick_ms:6.2f} of it")
    targets = [1] * arguments.rows
    spent_ms = measure_ms(lambda: score_tokens(kernels, logits, targets, 0, arguments.vocab), device)
    print(f"{'score_tokens':32}{spent_ms:10.2f} ms  {spent_ms / yardstick_ms:6.2f} of it")


if __name__ == "__main__":
    main()
