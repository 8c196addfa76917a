"""kilotron through its synchronous API; options are fields of `InferenceConfig`."""

import json
import time
from typing import Any

import kilotron
from kilotron.apis.llm import MegatronLLM
from kilotron.sampling_params import SamplingParams
from workloads.peers.protocol import serve


class KilotronSystem:
    """All requests in one call of `generate`."""

    def __init__(self, model: str, num_threads: int, options: dict[str, str]) -> None:
        settings: dict[str, Any] = {"num_threads": num_threads, "max_requests": 32, "buffer_size_gb": 3.0}
        settings |= {name: read_value(value) for name, value in options.items()}
        self._llm = MegatronLLM(model, **settings)

    def run(self, requests: list[dict[str, Any]]) -> tuple[list[float | None], list[float | None]]:
        start = time.monotonic()
        params = [
            SamplingParams(num_tokens_to_generate=request["num_tokens"], temperature=0.0, ignore_eos=True)
            for request in requests
        ]
        results = self._llm.generate([request["prompt"] for request in requests], params, show_progress=False)
        for result, request in zip(results, requests, strict=True):
            if len(result.generated_tokens) != request["num_tokens"]:
                raise RuntimeError(f"{len(result.generated_tokens)} tokens instead of {request['num_tokens']}")
        first, last = (
            [None if moment is None else moment - start for moment in moments]
            for moments in zip(*((r.timings.first_token, r.timings.finished) for r in results), strict=True)
        )
        return first, last

    def facts(self) -> dict[str, Any]:
        return {"version": kilotron.__version__, "kernels": self._llm.kernels_name}

    def close(self) -> None:
        self._llm.shutdown()


def read_value(text: str) -> Any:
    """An option's value: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    serve(KilotronSystem)
