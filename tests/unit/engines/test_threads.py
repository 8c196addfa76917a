"""Several threads that share one engine, as web frameworks and evaluation harnesses do."""

from concurrent.futures import ThreadPoolExecutor

from fakes import ScriptedWrapper, assert_nothing_is_left, make_scripted_engine
from kilotron.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=12)
LETTERS = "abcdefghij"


def expected(letter: str) -> str:
    return "".join(chr(ord(letter) + step) for step in range(1, 13))


def test_threads_get_their_own_text() -> None:
    engine = make_scripted_engine()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda letter: engine.generate([letter], GREEDY)[0], LETTERS * 10))
    assert [request.generated_text for request in results] == [expected(letter) for letter in LETTERS * 10]
    assert_nothing_is_left(engine)


def test_a_step_serves_the_requests_of_all_threads() -> None:
    wrapper = ScriptedWrapper()
    engine = make_scripted_engine(wrapper)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda letter: engine.generate([letter] * 4, GREEDY), LETTERS))
    assert wrapper.num_steps <= 12 * len(LETTERS)
    assert_nothing_is_left(engine)


def test_streams_in_threads_are_whole() -> None:
    engine = make_scripted_engine()

    def stream(letter: str) -> str:
        return "".join(item.text for item in engine.generate_stream(letter, GREEDY))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stream, LETTERS * 5)) == [expected(letter) for letter in LETTERS * 5]
    assert_nothing_is_left(engine)
