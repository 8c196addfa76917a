"""vLLM built for CPUs, its engine stepped in this process.

Set before vllm is imported, unless the environment says otherwise: no second process, all cores, no network.
"""

import itertools
import os
from typing import Any

from workloads.peers.protocol import Stopwatch, serve

DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


class VLLMSystem:
    """Option: "eager", which leaves out its compilation."""

    def __init__(self, model: str, num_threads: int, options: dict[str, str]) -> None:
        settings = DEFAULTS | {
            "VLLM_CPU_KVCACHE_SPACE": "1" if options.get("num_requests") == "1" else "3",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}",
        }
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        import vllm

        self._vllm = vllm
        self._engine = vllm.LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=4096,
            max_num_seqs=32,
            enable_prefix_caching=True,
            enforce_eager="eager" in options,
            disable_log_stats=True,
            distributed_executor_backend="uni",
        ).llm_engine
        self._request_ids = itertools.count()

    def run(self, requests: list[dict[str, Any]]) -> tuple[list[float | None], list[float | None]]:
        watch = Stopwatch(requests)
        indexes: dict[str, int] = {}
        seen = [0] * len(requests)
        for index, request in enumerate(requests):
            count = request["num_tokens"]
            params = self._vllm.SamplingParams(
                temperature=0.0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False
            )
            request_id = str(next(self._request_ids))
            indexes[request_id] = index
            self._engine.add_request(request_id, {"prompt_token_ids": request["prompt"]}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                index = indexes[output.request_id.split("-")[0]]
                num_tokens = len(output.outputs[0].token_ids)
                watch.mark(index, num_tokens - seen[index])
                seen[index] = num_tokens
        return watch.timings()

    def facts(self) -> dict[str, Any]:
        return {"version": self._vllm.__version__}

    def close(self) -> None:
        pass


if __name__ == "__main__":
    serve(VLLMSystem)
