"""OpenVINO GenAI's continuous batching pipeline, on a folder that `conversions` made."""

import itertools
from typing import Any

import numpy as np
import openvino
import openvino_genai

from workloads.peers.protocol import Stopwatch, serve

KV_CACHE_GB, SINGLE_KV_CACHE_GB = 3, 1


class OpenVINOSystem:
    """Options: "precision" and "kv_cache" (bf16 both, the closest to the others), "max_num_batched_tokens"."""

    def __init__(self, model: str, num_threads: int, options: dict[str, str]) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = SINGLE_KV_CACHE_GB if options.get("num_requests") == "1" else KV_CACHE_GB
        scheduling.max_num_batched_tokens = int(options.get("max_num_batched_tokens", "2048"))
        scheduling.max_num_seqs = 32
        scheduling.enable_prefix_caching = True
        properties = {
            "INFERENCE_PRECISION_HINT": options.get("precision", "bf16"),
            "KV_CACHE_PRECISION": options.get("kv_cache", "bf16"),
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": "1",
            "CACHE_DIR": "",
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduling, "CPU", properties)
        self._request_ids = itertools.count()

    def run(self, requests: list[dict[str, Any]]) -> tuple[list[float | None], list[float | None]]:
        watch = Stopwatch(requests)
        handles = [self._add(request) for request in requests]
        unread = [request["num_tokens"] for request in requests]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for index, handle in enumerate(handles):
                if unread[index] and handle.can_read():
                    num_tokens = sum(len(output.generated_ids) for output in handle.read().values())
                    unread[index] -= num_tokens
                    watch.mark(index, num_tokens)
        return watch.timings()

    def _add(self, request: dict[str, Any]) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = request["num_tokens"]
        config.ignore_eos = True
        config.do_sample = False
        config.eos_token_id = 1
        prompt = openvino.Tensor(np.array([request["prompt"]], dtype=np.int64))
        return self._pipeline.add_request(next(self._request_ids), prompt, config)

    def facts(self) -> dict[str, Any]:
        return {"version": openvino_genai.__version__}

    def close(self) -> None:
        pass


if __name__ == "__main__":
    serve(OpenVINOSystem)
