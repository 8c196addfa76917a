"""What ends a generation, on a model that counts up the alphabet: a -> b ... z -> end of sequence."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import EOS_ID, ScriptedWrapper, make_scripted_engine, write_out
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams


def generate(prompt: str = "a", **fields: Any) -> InferenceRequest:
    return make_scripted_engine().generate([prompt], SamplingParams(**{"temperature": 0.0} | fields))[0]


def write(text: str, **fields: Any) -> InferenceRequest:
    """Lets the model write this text, one byte per token."""
    engine = make_scripted_engine(ScriptedWrapper(write_out(text, prompt_length=1)), max_sequence_length=256)
    return engine.generate([[65]], SamplingParams(temperature=0.0, **fields))[0]


def outcome(request: InferenceRequest) -> tuple[str, str | None, int | str | None]:
    return request.generated_text, request.finish_reason, request.stop_reason


def test_the_models_end_of_sequence_ends_it_and_is_not_shown() -> None:
    request = generate("w")
    assert outcome(request) == ("xyz", "stop", None)
    assert request.generated_tokens == [*b"xyz", EOS_ID]


def test_the_ending_token_is_shown_on_demand() -> None:
    assert outcome(generate("w", stop_token_ids=[ord("y")])) == ("x", "stop", ord("y"))
    assert outcome(generate("w", stop_token_ids=[ord("y")], detokenize_stop_sequence=True))[0] == "xy"
    assert generate("w", detokenize_stop_sequence=True, skip_special_tokens=False).generated_text == "xyz<|eos|>"


def test_any_id_of_a_list_of_ends_counts() -> None:
    engine = make_scripted_engine(eos_ids=(ord("d"), EOS_ID))
    assert outcome(engine.generate(["a"], SamplingParams(temperature=0.0))[0]) == ("bc", "stop", None)


def test_ignore_eos_goes_on_but_stop_ids_hold() -> None:
    assert generate("y", ignore_eos=True, max_tokens=4).generated_tokens == [ord("z"), EOS_ID, 2, 3]
    assert generate("y", ignore_eos=True, stop_token_ids=[EOS_ID]).stop_reason == EOS_ID


def test_termination_id_replaces_the_models_own_ends() -> None:
    assert outcome(generate("v", termination_id=ord("y"))) == ("wx", "stop", ord("y"))
    assert generate("y", termination_id=ord("b"), max_tokens=3).finish_reason == "length"
    assert generate("y", termination_id=-1, max_tokens=3).finish_reason == "length"


def test_min_tokens_forbids_ends_until_then() -> None:
    request = generate("y", min_tokens=4)
    assert EOS_ID not in request.generated_tokens[:4]
    assert generate("a", stop_token_ids=[ord("c")], min_tokens=1).generated_text == "b"
    assert ord("c") not in generate("a", stop_token_ids=[ord("c")], min_tokens=3, max_tokens=5).generated_tokens[:3]


def test_lengths_count_generated_or_all_tokens() -> None:
    assert generate("a", num_tokens_to_generate=3).generated_text == "bcd"
    request = generate("aa", num_tokens_total=6)  # begin of sequence, a, a, and three more
    assert (request.generated_text, request.finish_reason) == ("bcd", "length")
    assert generate("aa", num_tokens_total=3).generated_tokens == []


def test_without_a_limit_it_goes_to_the_context_length() -> None:
    request = generate("a", ignore_eos=True, stop_token_ids=[])
    assert (request.prompt_length + request.generated_length, request.finish_reason) == (64, "length")


def test_a_stop_text_across_tokens_ends_it_and_is_cut() -> None:
    assert outcome(generate("a", stop="efg")) == ("bcd", "stop", "efg")
    assert outcome(generate("a", stop=["zzz", "fg"], detokenize_stop_sequence=True)) == ("bcdefg", "stop", "fg")


def test_the_first_stop_text_of_several_counts() -> None:
    assert outcome(generate("a", stop=["gh", "cd", "defg"])) == ("b", "stop", "cd")


def test_half_a_stop_text_at_the_end_is_text() -> None:
    assert outcome(generate("a", stop="fgh", max_tokens=6)) == ("bcdefg", "length", None)
    assert outcome(generate("w", stop="z!")) == ("xyz", "stop", None)


def test_a_prompt_that_holds_the_stop_text_does_not_stop() -> None:
    assert generate("abc", stop="abc", max_tokens=3).generated_text == "def"
    assert generate("ab", stop="bc", max_tokens=3).generated_text == "cde"


def test_a_stop_text_in_a_character_of_several_bytes_is_found() -> None:
    assert outcome(write("naïve — olé!", stop="é")) == ("naïve — ol", "stop", "é")


@settings(max_examples=60, deadline=None)
@given(
    text=st.text("abß€", min_size=1, max_size=24), stops=st.lists(st.text("abß€", min_size=1, max_size=4), max_size=3)
)
def test_text_ends_before_the_stop_text_that_completes_first(text: str, stops: list[str]) -> None:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    request = write(text, stop_words=stops)
    if not ends:
        assert outcome(request) == (text, "stop", None)
        return
    starts = {text.find(stop) for stop in stops if stop in text and text.find(stop) + len(stop) == min(ends)}
    assert request.generated_text == text[: min(starts)]
    assert request.stop_reason in stops


def test_logit_bias_turns_the_choice() -> None:
    assert generate("a", logit_bias={ord("x"): 50.0}, max_tokens=2).generated_text == "xx"
    assert generate("a", logit_bias={ord("b"): -100.0}, max_tokens=1).generated_tokens == [258]


def test_only_allowed_ids_are_generated() -> None:
    assert generate("a", allowed_token_ids=[ord("q"), ord("c")], max_tokens=3).generated_text == "qqq"


def test_bad_words_are_not_generated() -> None:
    text = generate("a", bad_words=["cd"], max_tokens=4, ignore_eos=True).generated_text
    assert text.startswith("bc")
    assert "cd" not in text


def test_penalties_count_what_was_generated_before_a_preemption() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=14, logit_bias={ord("m"): 10.0}, frequency_penalty=2.0)
    engine = make_scripted_engine(num_blocks=6)
    crowd = engine.generate(["0123456789", "abcdefg", "ABCDEFGHI"], params)
    assert engine.scheduler.num_preemptions > 0
    for prompt, request in zip(["0123456789", "abcdefg", "ABCDEFGHI"], crowd, strict=True):
        assert request.generated_tokens == make_scripted_engine().generate([prompt], params)[0].generated_tokens


def test_segments_are_the_texts_of_the_tokens() -> None:
    assert generate("a", max_tokens=3, return_segments=True).generated_segments == ["b", "c", "d"]


@pytest.mark.parametrize("params", [{}, {"streaming": True}, {"stop": "€€"}])
def test_text_is_the_same_whether_made_early_or_late(params: dict[str, Any]) -> None:
    assert write("ß€ab€", **params).generated_text == "ß€ab€"


def test_an_incomplete_character_at_the_end_shows_as_one_replacement() -> None:
    assert write("ab€", max_tokens=3).generated_text == "ab�"
