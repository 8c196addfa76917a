"""Ctrl-C during a step, with the real signal."""

import os
import signal
import threading

import pytest
from torch import Tensor

from fakes import ScriptedWrapper, assert_nothing_is_left, make_scripted_engine
from kilotron.engines.interruption import run_uninterrupted
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=4)


class InterruptedWrapper(ScriptedWrapper):
    """The user presses Ctrl-C while the model runs for the second time."""

    was_completed = False

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        if self.num_steps == 1:
            os.kill(os.getpid(), signal.SIGINT)
            self.was_completed = True
        return super().run_one_forward_step(batch)


@pytest.fixture(autouse=True)
def handler_of_a_plain_program() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_in_a_step_raises_after_it_and_the_engine_goes_on() -> None:
    wrapper = InterruptedWrapper()
    engine = make_scripted_engine(wrapper)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(["a", "b"], GREEDY)
    assert wrapper.was_completed
    assert_nothing_is_left(engine)
    assert engine.generate(["a"], GREEDY)[0].generated_text == "bcde"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_stream_ends_the_stream_and_the_engine_goes_on() -> None:
    engine = make_scripted_engine(InterruptedWrapper())
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate_stream("a", GREEDY))
    assert_nothing_is_left(engine)


def test_an_error_in_the_step_gives_the_handler_back() -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_uninterrupted(fail)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_stays_in_charge() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    run_uninterrupted(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert seen == [signal.SIGINT]


def test_other_threads_run_the_step_as_it_is() -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(run_uninterrupted(lambda: 7)))
    thread.start()
    thread.join()
    assert results == [7]
