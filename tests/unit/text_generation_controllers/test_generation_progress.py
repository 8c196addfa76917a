"""One request's output as its tokens come: stop conditions, text, stream items."""

from typing import Any

import pytest

from kilotron.errors import RequestAbortedError
from kilotron.inference_request import InferenceRequest, RequestTimings
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.step_plan import TokenScores
from kilotron.text_generation_controllers.generation_progress import GenerationProgress
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.tokenization import ByteTokenizer

EOS = 257


def make_progress(
    *, tokenizer: ByteTokenizer | None = None, end_ids: Any = (EOS,), **fields: Any
) -> GenerationProgress:
    params = SamplingParams(**fields)
    request = InferenceRequest(
        request_id=1,
        prompt_tokens=[65],
        sampling_params=params,
        timings=RequestTimings(0.0),
        max_generated=params.num_tokens_to_generate or 100,
        end_ids=frozenset(end_ids) | frozenset(params.stop_token_ids),
    )
    return GenerationProgress(request, tokenizer or ByteTokenizer())


def feed(progress: GenerationProgress, text: str) -> str | None:
    """Advances byte by byte; the reason of the last one."""
    reasons = [progress.advance(byte) for byte in text.encode()]
    assert not any(reasons[:-1])
    return reasons[-1]


def test_it_goes_on_until_an_end_id() -> None:
    progress = make_progress()
    assert feed(progress, "abc") is None
    assert progress.advance(EOS) == "stop"
    progress.finish("stop")
    assert progress.request.generated_text == "abc"


def test_it_ends_at_its_length() -> None:
    assert feed(make_progress(max_tokens=3), "abc") == "length"


def test_an_end_id_counts_more_than_the_length() -> None:
    progress = make_progress(max_tokens=1)
    assert progress.advance(EOS) == "stop"
    assert progress.request.stop_reason is None


def test_the_first_token_is_timed_once() -> None:
    progress = make_progress()
    feed(progress, "a")
    first = progress.request.timings.first_token
    feed(progress, "b")
    assert progress.request.timings.first_token == first is not None


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_the_ending_tokens_text_is_kept_on_demand(keeps: bool, streaming: bool) -> None:
    progress = make_progress(stop_token_ids=[ord("!")], detokenize_stop_sequence=keeps, streaming=streaming)
    progress.finish(feed(progress, "hi!") or "")
    assert progress.request.generated_text == ("hi!" if keeps else "hi")
    assert progress.request.stop_reason == ord("!")


def test_bytes_held_back_at_the_end_may_complete_a_stop_text() -> None:
    progress = make_progress(stop="�", max_tokens=2)
    assert progress.advance(ord("a")) is None
    assert progress.advance(0xE2) == "length"
    progress.finish("length")
    request = progress.request
    assert (request.generated_text, request.finish_reason, request.stop_reason) == ("a", "stop", "�")


def test_a_stop_text_that_follows_the_ending_token_does_not_count() -> None:
    progress = make_progress(stop="ab", end_ids=[ord("b")])
    assert feed(progress, "ab") == "stop"
    progress.finish("stop")
    assert progress.request.generated_text == "a"


def test_an_aborted_request_keeps_its_text_and_error() -> None:
    progress, error = make_progress(stop="xyz"), RequestAbortedError("enough")
    feed(progress, "ab xy")
    progress.finish("abort", error)
    assert (progress.request.generated_text, progress.request.error) == ("ab xy", error)


def test_items_hold_what_is_new() -> None:
    progress = make_progress(streaming=True, logprobs=1)
    for byte, value in ((ord("a"), -1.0), (ord("b"), -2.0)):
        progress.add_scores(TokenScores([value], [{byte: value}]))
        progress.advance(byte)
    assert progress.take_item() == StreamItem("ab", (97, 98), (-1.0, -2.0), ({97: -1.0}, {98: -2.0}), None)
    progress.advance(EOS)
    progress.add_scores(TokenScores([-3.0], [{EOS: -3.0}]))
    progress.finish("stop")
    assert progress.take_item() == StreamItem("", (EOS,), (-3.0,), ({EOS: -3.0},), "stop")


def test_items_wait_for_the_interval() -> None:
    progress = make_progress(streaming=True, streaming_interval=2)
    feed(progress, "a")
    assert progress.take_item() is None
    feed(progress, "b")
    item = progress.take_item()
    assert item is not None
    assert item.text == "ab"


def test_items_hold_back_what_may_become_a_stop_text() -> None:
    progress, texts = make_progress(streaming=True, stop="end"), []
    for character in "we're en route, the end":
        progress.advance(ord(character))
        item = progress.take_item()
        texts.append(item.text if item else "")
    assert "".join(texts) == "we're en route, the "
    assert texts[6:9] == ["", "", "en "]


def test_joined_items_are_one() -> None:
    first = StreamItem("a", (1,), (-1.0,), ({1: -1.0},), None)
    second = StreamItem("b", (2, 3), (-2.0, -3.0), ({2: -2.0}, {3: -3.0}), "stop")
    assert first.followed_by(second) == StreamItem(
        "ab", (1, 2, 3), (-1.0, -2.0, -3.0), ({1: -1.0}, {2: -2.0}, {3: -3.0}), "stop"
    )
    bare = StreamItem("a", (1,), None, None, None)
    assert bare.followed_by(bare) == StreamItem("aa", (1, 1), None, None, None)


def test_two_ids_of_one_text_show_the_likelier() -> None:
    progress = make_progress(logprobs=3)
    progress.add_scores(TokenScores([-1.0], [{0x80: -1.0, 0x81: -0.5, 97: -3.0}]))
    progress.advance(0x80)
    progress.finish("length")
    assert progress.request.generated_top_n_logprobs == [{"�": -0.5, "a": -3.0}]


def test_without_a_tokenizer_there_are_only_ids() -> None:
    request = make_progress().request
    progress = GenerationProgress(request, None)
    progress.advance(97)
    progress.finish("length")
    assert (request.generated_tokens, request.generated_text) == ([97], "")
