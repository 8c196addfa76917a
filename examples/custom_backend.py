"""An engine of one's own: kilotron's requests and Megatron's pools around something that is no neural network at all.

Whatever implements `AbstractEngine` can be used where an engine is asked for; here it is a chain of words.
"""

import argparse
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from kilotron import AbstractEngine, InferenceRequest, SamplingParams, Scheduler, Status

TEXT = Path(__file__).read_text(encoding="utf-8")


class WordChainEngine(AbstractEngine):
    """Continues a text with words that follow one another in another text.

    Token ids are places in a list of words. Requests run in batches, by one word each in turn.
    """

    def __init__(self, text: str, max_batch_size: int) -> None:
        words = text.split()
        self.words = sorted(set(words))
        self.scheduler = Scheduler(max_batch_size=max_batch_size)
        self._id_of = {word: index for index, word in enumerate(self.words)}
        self._followers: dict[int, list[int]] = {}
        for word, follower in itertools.pairwise(words):
            self._followers.setdefault(self._id_of[word], []).append(self._id_of[follower])

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[InferenceRequest]:
        """One request per prompt, in order."""
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params or SamplingParams()] * len(prompts)
        ids = [self._add(prompt, params) for prompt, params in zip(prompts, sampling_params, strict=True)]
        while self.scheduler.have_requests_pending():
            for request in self.scheduler.active_request_pool.values():
                self._advance(request)
            self.scheduler.update_requests_pools()
        return [self.scheduler.completed_request_pool.pop(request_id) for request_id in ids]

    def _add(self, prompt: str | Sequence[int], params: SamplingParams) -> int:
        text = prompt if isinstance(prompt, str) else " ".join(self.words[token_id] for token_id in prompt)
        tokens = [self._id_of[word] for word in text.split() if word in self._id_of]
        return self.scheduler.add_request(prompt=text, prompt_tokens=tokens, sampling_params=params)

    def _advance(self, request: InferenceRequest) -> None:
        """Adds a word; ends the request when none follows or there are enough."""
        params, generated = request.sampling_params, request.generated_tokens
        last = [*request.prompt_tokens, *generated][-1:]
        followers = self._followers.get(last[0], []) if last else list(range(len(self.words)))
        wanted = 20 if params.num_tokens_to_generate is None else params.num_tokens_to_generate
        if not followers or len(generated) >= wanted:
            request.generated_text = " ".join(self.words[token_id] for token_id in generated)
            request.finish_reason = "length" if followers else "stop"
            request.status = Status.COMPLETED
            return
        # A function of seed and place, so that a request does not depend on its company.
        generated.append(random.Random(f"{params.seed or 0}/{len(generated)}").choice(followers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", nargs="+", default=["An engine", "a request", "for request in"])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    engine = WordChainEngine(TEXT, max_batch_size=2)
    for result in engine.generate(args.prompts, SamplingParams(num_tokens_to_generate=12, seed=args.seed)):
        print(f"{result.request_id}: {result.prompt} | {result.generated_text} ({result.finish_reason})")


if __name__ == "__main__":
    main()
