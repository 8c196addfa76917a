"""A great many requests through one engine, a fifth of them aborted anywhere: everything comes back to where it was."""

import gc
import random
import time
from collections.abc import Iterator

import psutil
import pytest
import torch

from fakes import EOS_ID, VOCAB_SIZE, ScriptedWrapper, assert_nothing_is_left, make_scripted_engine
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.inference_request import InferenceRequest
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling_params import SamplingParams

NUM_BLOCKS = 33
SHARE_ABORTED = 0.2
MOST_UNDER_WAY = 96


def successor(token_id: int, position: int) -> int:
    """Now and then the end of sequence."""
    return (token_id * 31 + position * 17 + 7) % VOCAB_SIZE


class HashWrapper(ScriptedWrapper):
    """`ScriptedWrapper` of `successor`, without a loop over rows."""

    def run_one_forward_step(self, batch: InferenceBatch) -> torch.Tensor:
        tokens, positions = batch.token_ids[batch.logits_index], batch.positions[batch.logits_index]
        logits = torch.zeros(len(tokens), VOCAB_SIZE)
        return logits.scatter_(1, ((tokens * 31 + positions * 17 + 7) % VOCAB_SIZE)[:, None], 5.0)


def expected_tokens(request: InferenceRequest) -> list[int]:
    tokens, last = [], request.prompt_tokens[-1]
    for position in range(request.prompt_length - 1, request.prompt_length + request.max_generated - 1):
        last = successor(last, position)
        tokens.append(last)
        if last == EOS_ID:
            break
    return tokens


class Crowd:
    """Sends requests of all kinds and aborts some of them, from one random seed."""

    def __init__(self, engine: DynamicInferenceEngine, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.doomed: list[int] = []
        self.num_sent = self.num_aborted = self.num_ended = self.num_expired = 0
        self.prefixes = [self._tokens(24) for _ in range(6)]

    def _tokens(self, count: int) -> list[int]:
        return self.random.choices(range(256), k=count)

    def send(self) -> None:
        draw = self.random
        prompt = self._tokens(draw.randint(1, 20))
        if draw.random() < 0.4:
            prompt = draw.choice(self.prefixes)[: draw.randint(1, 24)] + prompt
        params = SamplingParams(
            temperature=0.0,
            max_tokens=draw.randint(0, 20),
            n=draw.choice((1, 1, 1, 1, 3)),
            return_log_probs=draw.random() < 0.1,
            priority=draw.choice((0, 0, 0, -1, 2)),
            streaming=draw.random() < 0.2,
            stop_words=("zz",) if draw.random() < 0.1 else (),
        )
        timeout_s = draw.choice((None, None, None, 1e-6 if draw.random() < 0.05 else 5.0))
        request = self.engine.intake.build(prompt, params, timeout_s=timeout_s)
        self.engine.add_request(request, listener=lambda *_: None)
        self.num_sent += len(request.choices)
        self.doomed += [c.request_id for c in request.choices if draw.random() < SHARE_ABORTED and not c.is_finished]
        self.num_ended += sum(choice.is_finished for choice in request.choices)

    def step(self) -> None:
        while self.doomed and self.random.random() < 0.5:
            request_id = self.doomed.pop(self.random.randrange(len(self.doomed)))
            if request_id in self.engine._requests:
                self.engine.abort(request_id)
                self.num_aborted += 1
                self.num_ended += 1
        for request in self.engine.step():
            self.num_ended += 1
            if request.finish_reason == "deadline":
                self.num_expired += 1
            elif not request.sampling_params.stop_words:
                assert request.generated_tokens == expected_tokens(request)

    def run(self, num_requests: int) -> Iterator[int]:
        """Yields now and then, with the number of requests sent."""
        last = 0
        while self.num_sent < num_requests or self.engine.has_unfinished_requests:
            while self.num_sent < num_requests and self.engine.num_unfinished_requests < MOST_UNDER_WAY:
                self.send()
            self.step()
            if self.num_sent - last >= 500:
                last = self.num_sent
                yield last


def soak(num_requests: int) -> tuple[Crowd, list[int]]:
    engine = make_scripted_engine(HashWrapper(), num_blocks=NUM_BLOCKS, max_tokens=64, max_requests=32)
    crowd, memory = Crowd(engine, seed=1), []
    for _ in crowd.run(num_requests):
        assert engine.scheduler.check_ledger() == []
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
    return crowd, memory


def assert_back_to_the_beginning(crowd: Crowd) -> None:
    engine = crowd.engine
    assert_nothing_is_left(engine)
    assert crowd.num_ended == crowd.num_sent == engine.num_requests_finished
    assert engine.scheduler.allocator.num_available == NUM_BLOCKS - 1
    assert engine.scheduler.num_preemptions > 0
    assert crowd.num_aborted > 0.05 * crowd.num_sent
    assert not engine.scheduler.waiting._by_priority


def test_five_thousand_requests_leave_nothing_behind() -> None:
    crowd, memory = soak(5_000)
    assert_back_to_the_beginning(crowd)
    assert memory[-1] - memory[2] < 8 << 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_requests_leave_nothing_behind() -> None:
    started = time.monotonic()
    crowd, memory = soak(100_000)
    assert_back_to_the_beginning(crowd)
    assert memory[-1] - memory[10] < 8 << 20
    print(f"{crowd.num_sent} requests, {crowd.num_aborted} aborted, {time.monotonic() - started:.0f} s")
