"""Figures that another thread may read at any time, also while a step hangs."""

import threading
import time

from torch import Tensor

from fakes import FailingWrapper, ScriptedWrapper, make_scripted_engine
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=4)


def test_an_idle_engine_has_done_nothing_and_has_nothing_to_do() -> None:
    load = make_scripted_engine().read_load()
    assert (load.num_steps, load.num_running, load.num_waiting, load.step_started) == (0, 0, 0, None)
    assert (load.num_blocks_owned, load.num_blocks_cached, load.num_blocks_free) == (0, 0, 64)
    assert load.num_requests_finished == dict.fromkeys(("stop", "length", "abort", "deadline", "error"), 0)


def test_figures_follow_the_requests() -> None:
    engine = make_scripted_engine(max_requests=1)
    for _ in range(2):
        engine.add_request([1] * 20, GREEDY)
    engine.step()
    load = engine.read_load()
    assert (load.num_running, load.num_waiting, load.num_blocks_owned) == (1, 1, 3)
    while engine.has_unfinished_requests:
        engine.step()
    load = engine.read_load()
    assert (load.num_prompt_tokens_computed, load.num_prompt_tokens_cached) == (24, 16)
    assert (load.num_prefix_tokens_queried, load.num_prefix_tokens_hit) == (40, 16)
    assert (load.num_tokens_generated, load.num_steps, load.num_steps_failed) == (8, 8, 0)
    assert load.num_requests_finished["length"] == engine.num_requests_finished == 2
    assert load.num_blocks_owned + load.num_blocks_cached + load.num_blocks_free == 64
    assert load.num_blocks_cached == 2


def test_a_beam_search_is_one_running_request() -> None:
    engine = make_scripted_engine()
    engine.add_request("abc", SamplingParams(beam_width=4, max_tokens=4))
    engine.step()
    assert (engine.read_load().num_running, engine.read_load().num_waiting) == (1, 0)


def test_ends_are_counted_by_reason() -> None:
    engine = make_scripted_engine(FailingWrapper())
    engine.generate(["!"], GREEDY)
    engine.generate(["y"], GREEDY)
    engine.abort(engine.add_request("a", GREEDY).request_id)
    load = engine.read_load()
    assert load.num_requests_finished == {"stop": 1, "length": 0, "abort": 1, "deadline": 0, "error": 1}
    assert load.num_steps_failed == 1


class HangingWrapper(ScriptedWrapper):
    """Waits in the middle of a step until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        self.has_begun.set()
        assert self.may_go_on.wait(10)
        return super().run_one_forward_step(batch)


def test_a_hanging_step_shows_since_when_it_hangs() -> None:
    wrapper = HangingWrapper()
    engine = make_scripted_engine(wrapper)
    before = time.monotonic()
    thread = threading.Thread(target=engine.generate, args=(["a"], GREEDY))
    thread.start()
    assert wrapper.has_begun.wait(10)
    load = engine.read_load()
    assert load.num_running == 1
    assert load.step_started is not None
    assert before <= load.step_started <= time.monotonic()
    wrapper.may_go_on.set()
    thread.join()
    assert engine.read_load().step_started is None
