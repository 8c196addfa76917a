"""transformers' `generate`: one left-padded batch that runs until its longest request is done.

The tokens that shorter requests get beyond their own number are computed and not counted, as its users have it.
"""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from workloads.peers.protocol import Stopwatch, serve

PAD_TOKEN_ID = 2


class StepMarks:
    """A logits processor that changes nothing and notes when the first logits are there."""

    def __init__(self, watch: Stopwatch, num_requests: int) -> None:
        self._watch, self._num_requests, self._is_first = watch, num_requests, True

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._is_first:
            for index in range(self._num_requests):
                self._watch.mark(index, 1)
        self._is_first = False
        return scores


class TransformersSystem:
    """A model in bfloat16, attention through `scaled_dot_product_attention`."""

    def __init__(self, model: str, num_threads: int, options: dict[str, str]) -> None:
        torch.set_num_threads(num_threads)
        attention = options.get("attention", "sdpa")
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation=attention)
        self._model.eval()

    @torch.inference_mode()
    def run(self, requests: list[dict[str, Any]]) -> tuple[list[float | None], list[float | None]]:
        watch = Stopwatch(requests)
        width = max(len(request["prompt"]) for request in requests)
        most = max(request["num_tokens"] for request in requests)
        ids = torch.full((len(requests), width), PAD_TOKEN_ID)
        mask = torch.zeros(len(requests), width, dtype=torch.long)
        for row, request in enumerate(requests):
            length = len(request["prompt"])
            ids[row, width - length :] = torch.tensor(request["prompt"])
            mask[row, width - length :] = 1
        self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=most,
            min_new_tokens=most,
            do_sample=False,
            pad_token_id=PAD_TOKEN_ID,
            logits_processor=[StepMarks(watch, len(requests))],
        )
        for index, request in enumerate(requests):
            watch.mark(index, request["num_tokens"] - 1)
        return watch.timings()

    def facts(self) -> dict[str, Any]:
        return {"version": transformers.__version__, "torch": torch.__version__}

    def close(self) -> None:
        pass


if __name__ == "__main__":
    serve(TransformersSystem)
