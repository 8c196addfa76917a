"""`kilotron bench throughput` and `latency`: random prompts with fixed seeds, figures for people or as JSON."""

import random
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from kilotron.cli.failures import UsageError
from kilotron.cli.loaded_model import LoadedModel, check_model_name, open_model
from kilotron.cli.options import ENGINE, OUTPUT_GROUP, RUN, EngineOptions, Model, RunOptions, flag, switch
from kilotron.cli.output import format_table, print_json

if TYPE_CHECKING:
    from kilotron.inference_request import InferenceRequest

InputLength = Annotated[int, flag("Tokens in each prompt.", "--input-len", "--input-length")]
OutputLength = Annotated[
    int, flag("Tokens generated for each prompt, whatever they are.", "--output-len", "--output-length")
]
Seed = Annotated[int, flag("Draws the prompts: same seed, same work.")]
Json = Annotated[bool, switch("One JSON object instead of a table.", group=OUTPUT_GROUP)]

_PERCENTILES = (50, 90, 99)


def throughput(
    model: Model = None,
    /,
    *,
    num_prompts: Annotated[int, flag("Prompts, all given at once.")] = 32,
    input_len: InputLength = 128,
    output_len: OutputLength = 64,
    seed: Seed = 0,
    json: Json = False,
    run: RunOptions = RUN,
    engine: EngineOptions = ENGINE,
) -> int:
    """Many random prompts at once: requests and tokens per second.

    All prompts arrive together, so the time to the first token includes the
    wait for those before.

    Try:
      kilotron bench throughput --num-prompts 64 --output-len 32
      kilotron bench throughput ./checkpoint --max-num-seqs 16 --json
    """
    check_positive(num_prompts=num_prompts, input_len=input_len, output_len=output_len)
    check_model_name(model)
    with open_model(model, engine, run) as loaded:
        workload = _Workload(loaded, input_len, output_len, seed)
        workload.run(1)  # the first step of a process allocates and compiles
        requests = workload.run(num_prompts)
        facts = workload.facts() | {"num_prompts": num_prompts} | _throughput_figures(requests)
        _report(facts, requests, is_json=json)
        loaded.tell_times()
    return 0


def latency(
    model: Model = None,
    /,
    *,
    num_repeats: Annotated[int, flag("Measured prompts, one after the other.")] = 5,
    num_warmups: Annotated[int, flag("Prompts before the first that counts.")] = 1,
    input_len: InputLength = 128,
    output_len: OutputLength = 64,
    seed: Seed = 0,
    json: Json = False,
    run: RunOptions = RUN,
    engine: EngineOptions = ENGINE,
) -> int:
    """One prompt at a time: time to the first token and per token.

    Every repeat has a prompt of its own, so that nothing comes from the prefix
    cache.

    Try:
      kilotron bench latency --input-len 512 --output-len 32
      kilotron bench latency ./checkpoint --num-repeats 20 --json
    """
    check_positive(num_repeats=num_repeats, input_len=input_len, output_len=output_len)
    check_model_name(model)
    with open_model(model, engine, run) as loaded:
        workload = _Workload(loaded, input_len, output_len, seed)
        for _ in range(num_warmups):
            workload.run(1)
        requests = [workload.run(1)[0] for _ in range(num_repeats)]
        facts = workload.facts() | {"num_repeats": num_repeats} | _latency_figures(requests)
        _report(facts, requests, is_json=json)
        loaded.tell_times()
    return 0


class _Workload:
    """Prompts of random ids, never the same one twice, that always generate the same number of tokens."""

    def __init__(self, loaded: LoadedModel, input_length: int, output_length: int, seed: int) -> None:
        from kilotron.sampling_params import SamplingParams

        self._loaded = loaded
        self._lengths = (input_length, output_length)
        self._random = random.Random(seed)
        self._params = SamplingParams(
            num_tokens_to_generate=output_length,
            temperature=0.0,
            ignore_eos=True,
            seed=seed,
        )

    def run(self, num_prompts: int) -> "list[InferenceRequest]":
        llm = self._loaded.llm
        last_id = llm.engine.intake.limits.vocab_size - 1
        length = self._lengths[0]
        prompts = [[self._random.randint(0, last_id) for _ in range(length)] for _ in range(num_prompts)]
        requests = llm.generate(prompts, self._params, show_progress=self._loaded.run.progress)
        for request in requests:
            if request.error is not None:
                raise request.error
        return requests

    def facts(self) -> dict[str, Any]:
        """What was measured, so that the figures mean something later."""
        llm = self._loaded.llm
        return {
            "model": self._loaded.name,
            "dtype": llm.config.dtype,
            "quantization": llm.config.quantization or "none",
            "device": llm.config.device,
            "kernels": llm.kernels_name,
            "input_len": self._lengths[0],
            "output_len": self._lengths[1],
        }


def _throughput_figures(requests: "Sequence[InferenceRequest]") -> dict[str, Any]:
    wall_s = max(_at(request.timings.finished) for request in requests) - min(r.timings.arrival for r in requests)
    num_prompt = sum(request.prompt_length + len(request.encoder_tokens) for request in requests)
    num_output = sum(request.generated_length for request in requests)
    return {
        "wall_s": wall_s,
        "requests_per_s": len(requests) / wall_s,
        "prompt_tokens_per_s": num_prompt / wall_s,
        "output_tokens_per_s": num_output / wall_s,
    }


def _latency_figures(requests: "Sequence[InferenceRequest]") -> dict[str, Any]:
    median_s = statistics.median(_at(request.timings.latency_s) for request in requests)
    return {"latency_s": median_s, "output_tokens_per_s": requests[0].generated_length / median_s}


def _report(facts: dict[str, Any], requests: "Sequence[InferenceRequest]", *, is_json: bool) -> None:
    times = {
        "time_to_first_token_ms": [_at(request.ttft) * 1000 for request in requests],
        "time_per_output_token_ms": [request.tpot * 1000 for request in requests if request.tpot is not None],
    }
    spreads = {name: spread_of(values) for name, values in times.items() if values}
    if is_json:
        print_json(facts | spreads)
        return
    rows = [(name, f"{value:.2f}" if isinstance(value, float) else value) for name, value in facts.items()]
    print(format_table(rows, right=(1,)))
    print()
    header = ("", *(f"p{percent}" for percent in _PERCENTILES))
    columns = [(name, *(f"{value:.2f}" for value in spread.values())) for name, spread in spreads.items()]
    print(format_table(columns, header, right=(1, 2, 3)))


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """The percentiles of some figures, interpolated."""
    ordered = sorted(values)
    result = {}
    for percent in _PERCENTILES:
        place = (len(ordered) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        result[f"p{percent}"] = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
    return result


def _at(seconds: float | None) -> float:
    return 0.0 if seconds is None else seconds


def check_positive(**numbers: int) -> None:
    """Refuses numbers below 1, by the names of their flags.

    Raises:
        UsageError: one of them is.
    """
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
