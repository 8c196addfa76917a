"""Sampling and stopping of one's own: a controller that draws typical tokens and ends with the first sentence.

Typical sampling: Meister et al., "Locally Typical Sampling", TACL 2023.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

import kilotron
from kilotron import GPTInferenceWrapper, MCoreEngine, SamplingParams, TextGenerationController


class TypicalSampling(TextGenerationController):
    """Keeps the tokens whose surprise is nearest to the expected one, up to a mass of `attributes["typical_p"]`."""

    def sample_from_logits(self, last_token_logits: Tensor, params: SamplingParams, vocab_size: int) -> Tensor:
        """Megatron's hook: [rows, padded vocabulary] -> [rows]."""
        log_probs = last_token_logits[:, :vocab_size].log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
        order = (-log_probs - entropy).abs().argsort(-1)
        mass = log_probs.exp().gather(-1, order).cumsum(-1)
        is_dropped = mass.roll(1, -1) >= params.attributes["typical_p"]
        is_dropped[:, 0] = False  # the nearest stays, whatever its mass
        dropped = torch.zeros_like(is_dropped).scatter(-1, order, is_dropped)
        last_token_logits[:, :vocab_size].masked_fill_(dropped, -torch.inf)
        # Temperature, seed and the rest as usual.
        return super().sample_from_logits(last_token_logits, params, vocab_size)

    def update_generation_status(self, row: Any, token_id: int | None, result: Any) -> Any:
        """Ends a request with its first sentence."""
        ended = super().update_generation_status(row, token_id, result)
        if ended is None and token_id is not None and self.tokenizer.token_text(token_id).rstrip().endswith((".", "!")):
            progress = self.progress_of(row.request_id)
            self.finish_request(progress, "stop")
            return progress.request
        return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint folder or hub id; left out: the bundled tiny model")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model, tokenizer = kilotron.load_model(args.model)
    engine = MCoreEngine(TypicalSampling(GPTInferenceWrapper(model), tokenizer), max_batch_size=4)
    masses = (0.2, 0.5, 0.9)
    params = [
        SamplingParams(num_tokens_to_generate=60, seed=args.seed).add_attributes({"typical_p": mass}) for mass in masses
    ]
    results = engine.generate([args.prompt] * len(masses), params)
    for mass, result in zip(masses, results, strict=True):
        if result.error is not None:
            raise result.error
        print(f"typical_p={mass}: {args.prompt}{result.generated_text}")


if __name__ == "__main__":
    main()
